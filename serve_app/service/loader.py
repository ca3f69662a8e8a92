"""Where one video comes from: this process' memory, a shared tier, a flight that is in the air, or a new render.

One flight per key and process, which is a passage on the cluster's one flight: in it the shared tiers are asked once
for all who wait, and only if none has the video and nobody else is rendering it is it rendered. The number of flights
is bounded; when all places are taken, what the tiers hold is still answered. A video that no durable tier could take
stays in L1 alone, marked, and is stored by the next flight that finds it there.

An invalidation ends no flight: those on it asked before. But whoever asks afterwards gets a flight of their own, on
which nothing begun earlier is an answer.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import cast

from serve_app.cache.cache import TieredCache
from serve_app.clock import steady
from serve_app.core import (
    EVERYTHING,
    Entry,
    Keys,
    Outcome,
    Priority,
    RenderEvent,
    RenderRequest,
    Rule,
    Urgency,
    VideoSpec,
)
from serve_app.errors import Busy
from serve_app.flight.attempts import MAX_ATTEMPTS, Attempts, MemoryAttempts
from serve_app.flight.cluster_flight import ClusterFlight, Ticket
from serve_app.flight.record import FlightRecords
from serve_app.flight.result import FlightResult, Renderer, VideoFlight
from serve_app.flight.single_flight import SingleFlight
from serve_app.service.render_cost import Cost
from serve_app.telemetry import span

FindImage = Callable[[VideoSpec], Awaitable[bytes]]
_UNSTORED = "unstored"
"""In the metadata of an entry that is in this process' memory alone: no durable tier could take it."""


class VideoLoader:
    """The flights of one router over its cache and its renderer; without `flights` it knows of no other router.

    find_image: returns the first frame of a job that came without it, because another process had accepted the job.
    attempts: those of all processes; without, this one counts. max_attempts: so many deaths end a render for good.
    clock: Unix seconds that never go back, by which requests keep their order.
    """

    def __init__(
        self,
        cache: TieredCache,
        renderer: Renderer,
        model_fingerprint: str,
        *,
        max_queued: int,
        linger_seconds: float,
        flights: FlightRecords | None = None,
        find_image: FindImage | None = None,
        attempts: Attempts | None = None,
        max_attempts: int = MAX_ATTEMPTS,
        clock: Callable[[], float] = steady,
    ) -> None:
        self._cache = cache
        self._find_image = find_image
        self._renderer = renderer
        self._model_fingerprint = model_fingerprint
        self._max_queued = max_queued
        self._records = flights
        self._attempts: Attempts = attempts or MemoryAttempts()
        self._max_attempts = max_attempts
        self._clock = clock
        self._known_attempts: dict[VideoFlight, int] = {}
        self._flights: SingleFlight[FlightResult, RenderEvent] = SingleFlight(linger_seconds)
        self._passages: dict[VideoFlight, ClusterFlight] = {}
        self._urgency: dict[VideoFlight, Urgency] = {}
        self._labels: dict[VideoFlight, tuple[str, ...]] = {}
        self._images: dict[VideoFlight, bytes] = {}
        self._render_seconds = 1.0
        cache.rules.listen(self._invalidated)
        self.cost = Cost()

    def __len__(self) -> int:
        return len(self._flights)

    def now(self, keys: Keys) -> FlightResult | None:
        """Return the video if it is in this process' memory; awaits nothing."""
        entry = self._cache.get_now(keys.video)
        return None if entry is None else FlightResult(entry, Outcome.L1, None, _is_stored(entry))

    async def overflow(self, keys: Keys) -> FlightResult | None:
        """With every place taken, still answer what a tier has; None means there is a place (or a flight to join).

        Raises Busy. After None no await may come before `board`, or the place could be gone.
        """
        if self._flights.find(keys.video) is not None or len(self._flights) < self._max_queued:
            return None
        found = await self._cache.get(keys.video)
        if found is None:
            raise self.busy("renders are queued")
        return FlightResult(found[0], found[1], None, _is_stored(found[0]))

    def join_or_lead(
        self,
        spec: VideoSpec,
        keys: Keys,
        urgency: Urgency,
        *,
        asked_at: float | None = None,
        labels: tuple[str, ...] = (),
        ttl: float | None = None,
        image: bytes | None = None,
        attempts: int = 0,
    ) -> tuple[VideoFlight, bool]:
        """Return the flight of a video and whether this call started it; a flight hurries for whoever joins it.

        asked_at: Unix seconds, when this was first asked for (absent: now); an adopted job keeps its place in queues.
        labels: what invalidations may choose the video by. ttl: seconds that L2 keeps a video of this flight which
        nobody but a warm-up asked for. image: the first frame that the spec names, where the caller has it; one of
        those on a flight is enough. attempts: how many ended in a death, as a job's record says.
        """
        request = RenderRequest(
            spec,
            keys,
            self._model_fingerprint,
            asked_at=min(self._clock(), asked_at or self._clock()),  # another router's clock may be ahead
            labels=labels,
            ttl=ttl,
        )
        flight, led = self._flights.join_or_lead(keys.video, lambda flight: self._carry(request, flight))
        before = self._urgency.get(flight, urgency)
        self._urgency[flight] = before.joined(urgency)
        if image is not None:
            self._images[flight] = image
        if attempts > self._known_attempts.get(flight, 0):
            self._known_attempts[flight] = attempts
        if led:
            self._labels[flight] = labels
            flight.task.add_done_callback(lambda _: self._forget(flight))
            return flight, led
        if self._urgency[flight] != before:
            self._renderer.promote(keys.video, self._urgency[flight])
            if flight in self._passages:
                self._passages[flight].hurry()
        return flight, led

    async def aclose(self) -> None:
        """Stop hearing of other processes' flights."""
        if self._records is not None:
            await self._records.aclose()

    def _forget(self, flight: VideoFlight) -> None:
        del self._urgency[flight], self._labels[flight]
        self._images.pop(flight, None)
        self._known_attempts.pop(flight, None)

    def _invalidated(self, rules: tuple[Rule, ...]) -> None:
        """Let nobody join a flight any more that a new rule is about, or may be: its video's tags are its leader's."""
        chosen = {rule.label for rule in rules}
        may_be_any = any(rule.kind == "tag" for rule in rules)
        for flight, labels in self._labels.items():
            is_about = may_be_any or not chosen.isdisjoint((EVERYTHING, *labels))
            if is_about and self._flights.find(flight.key) is flight:
                self._flights.forget(flight.key)

    def busy(self, what: str) -> Busy:
        """Return the refusal that says `what` there are too many of, and when to come back."""
        wait = min(600, max(1, round(self._render_seconds * len(self._flights))))
        return Busy(f"Too many {what}; try again in {wait} s.", retry_after=wait)

    async def _carry(self, request: RenderRequest, flight: VideoFlight) -> FlightResult:
        """Look in L1 again (it may have landed meanwhile), then take this process' part in the cluster's flight."""
        keys, rules = request.keys, self._cache.rules
        with span("router", model=request.spec.model):
            await rules.ready()
            request = replace(request, rules=rules.concerning(request.labels))
            entry = self._cache.get_l1(keys.video)
            if entry is not None:
                if not _is_stored(entry):
                    entry = await self._store(entry)
                return FlightResult(entry, Outcome.L1, None, _is_stored(entry))
            began = time.perf_counter()
            passage = ClusterFlight(
                keys.video,
                self._ticket(request, flight),
                flight,
                self._cache,
                self._records,
                self._attempts,
                self._max_attempts,
            )
            self._passages[flight] = passage
            try:
                flight_result = await passage.run()
            finally:
                del self._passages[flight]
                if flight.abandoned:
                    await self._renderer.cancel(keys.video)
            self._landed(flight_result, time.perf_counter() - began, asked=not self._for_warm_up(request, flight))
            if request.ttl is not None and not self._for_warm_up(request, flight):
                await self._cache.extend(keys.video)  # somebody joined a warm-up, after it was told how long to keep it
            return flight_result

    def _ticket(self, request: RenderRequest, flight: VideoFlight) -> Ticket:
        rules, known = self._cache.rules, self._cache.rules.now
        not_before = known.not_before(request.labels)

        def ttl() -> float | None:
            return request.ttl if self._for_warm_up(request, flight) else None

        return Ticket(
            urgency=lambda: self._urgency[flight],
            render=lambda token, attempts: self._render(
                replace(
                    request,
                    urgency=self._urgency[flight],
                    token=token,
                    begun_at=max(token or rules.clock.now(), not_before),
                    ttl=ttl(),
                    image=self._images.get(flight),
                    attempts=attempts,
                )
            ),
            promote=lambda urgency: self._renderer.promote(request.keys.video, urgency),
            ttl=ttl,
            not_before=not_before,
            stale=lambda entry: known.covers(self._cache.kind, entry),
            begun_after=lambda: max(not_before, rules.clock.heard_of()),
            attempts=lambda: self._known_attempts.get(flight, 0),
        )

    def _render(self, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        if request.spec.input_reference and request.image is None and self._find_image is not None:
            return self._render_with(self._find_image, request)
        return self._renderer.render(request)

    async def _render_with(self, find_image: FindImage, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        rendering = self._renderer.render(replace(request, image=await find_image(request.spec)))
        async with aclosing(cast(AsyncGenerator[RenderEvent, None], rendering)) as events:
            async for event in events:
                yield event

    def _for_warm_up(self, request: RenderRequest, flight: VideoFlight) -> bool:
        """Whether nobody but a warm-up waits: then the video shall not push others out of this process' memory."""
        return request.ttl is not None and self._urgency[flight].priority is Priority.WARM_UP

    def _landed(self, flight_result: FlightResult, seconds: float, *, asked: bool) -> None:
        if flight_result.outcome is Outcome.RENDERED:
            self._render_seconds += 0.2 * (seconds - self._render_seconds)
            self.cost.learn(flight_result.entry)
        self._cache.hear(stored=flight_result.stored)
        if not flight_result.stored:
            self._remember_unstored(flight_result.entry)
        elif asked:
            self._cache.remember(flight_result.entry)

    async def _store(self, entry: Entry) -> Entry:
        """Try again to store a video that no durable tier could take when it was made."""
        kept = await self._cache.put(replace(entry, meta={k: v for k, v in entry.meta.items() if k != _UNSTORED}))
        self._cache.hear(stored=bool(kept.tiers))
        return kept.entry if kept.tiers else self._remember_unstored(entry)

    def _remember_unstored(self, entry: Entry) -> Entry:
        entry = replace(entry, meta={**entry.meta, _UNSTORED: True})
        self._cache.remember(entry)
        return entry


def _is_stored(entry: Entry) -> bool:
    return not entry.meta.get(_UNSTORED, False)
