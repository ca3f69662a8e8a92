"""Where one video comes from: this process' memory, a shared tier, an active flight, or a new render.

One flight per key and process, which is this process' part in the cluster's one flight: in it the shared tiers are
asked once for all waiters, and the video is rendered only if no tier has it and no other process renders it. The number
of flights is bounded; when all places are taken, what the tiers hold is still answered. A video that no durable tier
could take stays in L1 alone, marked, and is stored by the next flight that finds it there.

An invalidation ends no flight: its waiters asked before. Later callers get a flight of their own, for which nothing
begun earlier is an answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from serve_app.cache.cache import TieredCache
from serve_app.clock import steady
from serve_app.core import EVERYTHING, Entry, Keys, Outcome, RenderRequest, Rule, Urgency, VideoSpec
from serve_app.errors import Busy
from serve_app.flight.attempts import MAX_ATTEMPTS, Attempts, MemoryAttempts
from serve_app.flight.cluster_flight import ClusterFlight, FindImage, FlightServices
from serve_app.flight.record import FlightRecords
from serve_app.flight.renderer import Renderer
from serve_app.flight.result import FlightResult
from serve_app.flight.single_flight import FlightMap
from serve_app.running_mean import RunningMean
from serve_app.service.render_cost import Cost
from serve_app.telemetry import span

_UNSTORED = "unstored"
"""In the metadata of an entry that is in this process' memory alone: no durable tier could take it."""


class VideoLoader:
    """The flights of one router over its cache and its renderer; without `flight_records` it knows of no other router.

    find_image: returns the first frame of a job that came without it, because another process had accepted the job.
    attempts: those of all processes; without, this one counts. max_attempts: so many deaths end a render for good.
    clock: Unix seconds that never go back, by which requests keep their order. monotonic: what leases are measured by.
    """

    def __init__(
        self,
        cache: TieredCache,
        renderer: Renderer,
        model_fingerprint: str,
        *,
        max_queued: int,
        linger_seconds: float,
        flight_records: FlightRecords | None = None,
        find_image: FindImage | None = None,
        attempts: Attempts | None = None,
        max_attempts: int = MAX_ATTEMPTS,
        clock: Callable[[], float] = steady,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cost = Cost()
        self._cache = cache
        self._services = FlightServices(
            cache, renderer, attempts or MemoryAttempts(), flight_records, max_attempts, find_image, monotonic
        )
        self._model_fingerprint = model_fingerprint
        self._max_queued = max_queued
        self._linger_seconds = linger_seconds
        self._clock = clock
        self._flights: FlightMap[ClusterFlight] = FlightMap()
        self._render_seconds = RunningMean(0.2, 1.0)
        cache.rules.listen(self._invalidated)

    def __len__(self) -> int:
        return len(self._flights)

    def now(self, keys: Keys) -> FlightResult | None:
        """Return the video if it is in this process' memory; awaits nothing."""
        entry = self._cache.get_now(keys.video)
        return None if entry is None else FlightResult(entry, Outcome.L1, None, _is_stored(entry))

    async def overflow(self, keys: Keys) -> FlightResult | None:
        """With every place taken, still answer what a tier has; None means there is a place (or a flight to join).

        Raises Busy. After None no await may come before `join_or_lead`, or the place could be gone.
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
    ) -> tuple[ClusterFlight, bool]:
        """Return the flight of a video and whether this call started it; a flight is as urgent as its callers.

        asked_at: Unix seconds, when this was first asked for (absent: now); an adopted job keeps its place in queues.
        labels: what invalidations may choose the video by. ttl: seconds that L2 keeps a video of this flight which only
        a warm-up asked for. image: the first frame that the spec names, where the caller has it; one of a flight's
        callers is enough. attempts: how many ended in a death, as a job's record says.
        """

        def start() -> ClusterFlight:
            request = RenderRequest(
                spec,
                keys,
                self._model_fingerprint,
                urgency=urgency,
                asked_at=min(self._clock(), asked_at or self._clock()),  # another router's clock may be ahead
                ttl=ttl,
                labels=labels,
                attempts=attempts,
                image=image,
            )
            flight = ClusterFlight(request, self._services, self._linger_seconds)
            flight.start(lambda: self._load(flight, request))
            return flight

        flight, led = self._flights.join_or_start(keys.video, start)
        if not led:
            flight.join(urgency, image, attempts)
        return flight, led

    async def aclose(self) -> None:
        """Stop hearing of other processes' flights."""
        if self._services.records is not None:
            await self._services.records.aclose()

    def busy(self, what: str) -> Busy:
        """Return the refusal that says `what` there are too many of, and when to come back."""
        wait = min(600, max(1, round((self._render_seconds.value or 0.0) * len(self._flights))))
        return Busy(f"Too many {what}; try again in {wait} s.", retry_after=wait)

    def _invalidated(self, rules: tuple[Rule, ...]) -> None:
        """Let no later caller join a flight that a new rule concerns, or may: its video's tags are its leader's."""
        chosen = {rule.label for rule in rules}
        may_be_any = any(rule.kind == "tag" for rule in rules)
        for flight in self._flights:
            if may_be_any or not chosen.isdisjoint((EVERYTHING, *flight.labels)):
                self._flights.forget(flight.key)

    async def _load(self, flight: ClusterFlight, request: RenderRequest) -> FlightResult:
        """Look in L1 again (another flight may have ended meanwhile), then take part in the cluster's flight."""
        with span("router", model=request.spec.model):
            await self._cache.rules.ready()
            entry = self._cache.get_l1(flight.key)
            if entry is not None:
                if not _is_stored(entry):
                    entry = await self._store(entry)
                return FlightResult(entry, Outcome.L1, None, _is_stored(entry))
            began = time.perf_counter()
            result = await flight.run()
            self._take_in(result, time.perf_counter() - began, asked=not flight.is_for_warm_up)
            if request.ttl is not None and not flight.is_for_warm_up:
                await self._cache.extend(flight.key)  # a caller joined after L2 was told a warm-up's ttl
            return result

    def _take_in(self, result: FlightResult, seconds: float, *, asked: bool) -> None:
        if result.outcome is Outcome.RENDERED:
            self._render_seconds.add(seconds)
            self.cost.learn(result.entry)
        self._cache.hear(stored=result.stored)
        if not result.stored:
            self._remember_unstored(result.entry)
        elif asked:
            self._cache.remember(result.entry)

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
