"""Where one video comes from: this process' memory, a shared tier, a flight that is in the air, or a new render.

One flight per key: in it the shared tiers are asked once for all who wait, and only if none has the video is it
rendered. The number of flights is bounded; when all places are taken, what the tiers hold is still answered. A video
that no durable tier could take stays in L1 alone, marked, and is stored by the next flight that finds it there.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import cast

from serve_app.cache.cache import TieredCache
from serve_app.cache.flight import Flights
from serve_app.core import Entry, Finished, Keys, Outcome, RenderEvent, RenderRequest, Started, Urgency, VideoSpec
from serve_app.errors import Busy, RenderCancelled, RenderFailed
from serve_app.service.landing import Landing, Renderer, VideoFlight
from serve_app.telemetry import span

_UNSTORED = "unstored"
"""In the metadata of an entry that is in this process' memory alone: no durable tier could take it."""


class VideoSource:
    """The flights of one router over its cache and its renderer."""

    def __init__(
        self,
        cache: TieredCache,
        renderer: Renderer,
        model_fingerprint: str,
        *,
        max_queued: int,
        linger_seconds: float,
    ) -> None:
        self._cache = cache
        self._renderer = renderer
        self._model_fingerprint = model_fingerprint
        self._max_queued = max_queued
        self._flights: Flights[Landing, RenderEvent] = Flights(linger_seconds)
        self._urgency: dict[VideoFlight, Urgency] = {}
        self._render_seconds = 1.0

    def __len__(self) -> int:
        return len(self._flights)

    def now(self, keys: Keys) -> Landing | None:
        """Return the video if it is in this process' memory; awaits nothing."""
        entry = self._cache.get_now(keys.video)
        return None if entry is None else Landing(entry, Outcome.L1, None, _is_stored(entry))

    async def overflow(self, keys: Keys) -> Landing | None:
        """With every place taken, still answer what a tier has; None means there is a place (or a flight to join).

        Raises Busy. After None no await may come before `board`, or the place could be gone.
        """
        if self._flights.find(keys.video) is not None or len(self._flights) < self._max_queued:
            return None
        found = await self._cache.get(keys.video)
        if found is None:
            raise self.busy("renders are queued")
        return Landing(found[0], found[1], None, _is_stored(found[0]))

    def board(self, spec: VideoSpec, keys: Keys, urgency: Urgency) -> tuple[VideoFlight, bool]:
        """Return the flight of a video and whether this call started it; a flight hurries for whoever joins it."""
        flight, led = self._flights.board(keys.video, lambda flight: self._carry(spec, keys, flight))
        before = self._urgency.get(flight, urgency)
        self._urgency[flight] = before.joined(urgency)
        if led:
            flight.task.add_done_callback(lambda _: self._urgency.pop(flight))
        elif self._urgency[flight] != before:
            self._renderer.promote(keys.video, self._urgency[flight])
        return flight, led

    def busy(self, what: str) -> Busy:
        """Return the refusal that says `what` there are too many of, and when to come back."""
        wait = min(600, max(1, round(self._render_seconds * len(self._flights))))
        return Busy(f"Too many {what}; try again in {wait} s.", retry_after=wait)

    async def _carry(self, spec: VideoSpec, keys: Keys, flight: VideoFlight) -> Landing:
        """Look in every tier once for all on this flight (L1 again: it may have landed meanwhile), then render."""
        with span("router", model=spec.model):
            found = await self._cache.get(keys.video)
            if found is None:
                try:
                    return await self._render(spec, keys, flight)
                except RenderCancelled:  # by another router, whose last waiter left; here somebody still waits
                    return await self._render(spec, keys, flight)
            entry, outcome = found
            if not _is_stored(entry):
                entry = await self._store(entry)
            return Landing(entry, outcome, None, _is_stored(entry))

    async def _render(self, spec: VideoSpec, keys: Keys, flight: VideoFlight) -> Landing:
        embedding: str | None = None
        began = time.perf_counter()
        request = RenderRequest(spec, keys, self._model_fingerprint, self._urgency[flight], asked_at=time.time())
        rendering = self._renderer.render(request)
        try:
            async with aclosing(cast(AsyncGenerator[RenderEvent, None], rendering)) as events:
                async for event in events:
                    flight.publish(event)
                    if isinstance(event, Started):
                        embedding = event.embedding
                    elif isinstance(event, Finished):
                        self._render_seconds += 0.2 * (time.perf_counter() - began - self._render_seconds)
                        return self._landed(event, embedding)
        finally:
            if flight.abandoned:
                await self._renderer.cancel(keys.video)
        raise RenderFailed("The renderer ended without a video.")

    def _landed(self, finished: Finished, embedding: str | None) -> Landing:
        if finished.stored:
            self._cache.remember(finished.entry)
        else:
            self._remember_unstored(finished.entry)
        return Landing(finished.entry, finished.outcome, embedding, bool(finished.stored))

    async def _store(self, entry: Entry) -> Entry:
        """Try again to store a video that no durable tier could take when it was made."""
        kept = await self._cache.put(replace(entry, meta={k: v for k, v in entry.meta.items() if k != _UNSTORED}))
        return kept.entry if kept.tiers else self._remember_unstored(entry)

    def _remember_unstored(self, entry: Entry) -> Entry:
        entry = replace(entry, meta={**entry.meta, _UNSTORED: True})
        self._cache.remember(entry)
        return entry


def _is_stored(entry: Entry) -> bool:
    return not entry.meta.get(_UNSTORED, False)
