"""Frames to a stored file: encode, store, and only then call it finished.

The core of the VideoEncoder deployment, as plain Python. A render that is a flight in the cluster ends in one script
that writes L2 and the record, and only under its token. Equal frames give equal bytes; when a tier already holds other
bytes under the key (GPUs are not bit-reproducible), those are adopted, so that all callers see one file.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

from serve_app.cache.cache import Stored, TieredCache
from serve_app.cache.invalidation.rules import provenance
from serve_app.core import Entry, Finished, Frames, Outcome, RenderRequest, described
from serve_app.errors import RenderCancelled, TierError, TierFull
from serve_app.flight import result_json
from serve_app.flight.record import FlightRecords
from serve_app.flight.result import not_stored
from serve_app.media import encode_mp4
from serve_app.telemetry import Encoded, Telemetry, TierWritten, span

logger = logging.getLogger(__name__)


class VideoWriter:
    """Encodes and stores finished videos, and ends the flights they are the end of."""

    def __init__(self, cache: TieredCache, telemetry: Telemetry, flight_records: FlightRecords | None = None) -> None:
        self._cache = cache
        self._records = flight_records
        self._telemetry = telemetry

    async def finish(
        self, request: RenderRequest, frames: Frames, render_seconds: float, outcome: Outcome = Outcome.RENDERED
    ) -> Finished:
        """Encode `frames` [num_frames, height, width, 3] and store the file.

        Raises RenderFailed, and RenderCancelled when the flight was given to another process meanwhile. The entry's
        metadata carries the cost, the time and the spec without what it shows: a reader of the store is not to know.
        """
        spec = request.spec
        began = time.perf_counter()
        with span("encode", frames=len(frames)):
            data, _ = await asyncio.gather(  # the check beside the encoding, so that it delays nothing
                asyncio.to_thread(encode_mp4, frames, fps=spec.fps, quality=spec.quality), self._check(request)
            )
        encode_seconds = time.perf_counter() - began
        self._telemetry.emit(Encoded(encode_seconds, len(data)))
        self._cache.rules.learn(request.rules)
        meta = provenance(request.begun_at or request.token or self._cache.rules.clock.now(), request.labels) | {
            "spec": described(spec),
            "model_fingerprint": request.model_fingerprint,
            "latents": self._cache.masked(request.keys.video, request.keys.latents),
            "content_type": "video/mp4",
            "created_at": time.time(),
            "render_seconds": round(render_seconds, 4),
            "encode_seconds": round(encode_seconds, 4),
        }
        with span("store", bytes=len(data)):
            stored = await self._stored(request, Entry.of(request.keys.video, data, meta), outcome)
        return Finished(stored.entry, stored.tiers, render_seconds, encode_seconds, outcome)

    async def _check(self, request: RenderRequest) -> None:
        """Raise RenderCancelled when another process holds the flight by now: what follows would be in vain."""
        if request.token is None or self._records is None:
            return
        with suppress(TierError):
            news = await self._records.look(request.keys.video)
            if news is not None and news.token != request.token:
                raise _taken_over()

    async def _stored(self, request: RenderRequest, entry: Entry, outcome: Outcome) -> Stored:
        if request.token is None or self._records is None:
            return await self._cache.put(entry, not_before=self._not_before(request))
        held = await self._cache.put_l3(entry, not_before=self._not_before(request))
        try:
            return await self._landed(self._records, request, entry, held, outcome)
        except TierError as error:  # the record cannot be written: perhaps the value can
            logger.debug("a flight's end could not be told: %s", error)
            in_l2 = await self._cache.put_l2(held or entry, not_before=self._not_before(request))
            return Stored(("l2",) * in_l2 + ("l3",) * (held is not None), held or entry)

    def _not_before(self, request: RenderRequest) -> int:
        """Return since when what lies under the key must have been begun, to be adopted."""
        return self._cache.rules.not_before(request.labels)

    async def _landed(
        self, records: FlightRecords, request: RenderRequest, entry: Entry, held: Entry | None, outcome: Outcome
    ) -> Stored:
        """Write L2 and the flight's end in one step that only the newest token's holder can take; L3 has `held`."""
        key, token = entry.key, request.token or 0
        frame = self._cache.pack(held or entry)
        fits = len(frame) <= records.max_value_bytes
        if held is None and not fits:
            return await self._ended_without_l2(records, request, entry, held, outcome)
        began = time.perf_counter()
        try:
            written = await records.complete(
                key, token, frame if fits else None, result_json.completed(outcome), ttl=request.ttl
            )
        except TierFull:
            self._telemetry.emit(TierWritten("l2", "video", "too_full", time.perf_counter() - began, entry.size))
            return await self._ended_without_l2(records, request, entry, held, outcome)
        if not written and held is None:
            raise _taken_over()
        if fits:
            result = "stored" if written else "fenced"
            self._telemetry.emit(TierWritten("l2", "video", result, time.perf_counter() - began, entry.size))
        return Stored(("l2",) * (written and fits) + ("l3",) * (held is not None), held or entry)

    async def _ended_without_l2(
        self, records: FlightRecords, request: RenderRequest, entry: Entry, held: Entry | None, outcome: Outcome
    ) -> Stored:
        """End a flight whose value L2 did not take; without L3 too no other process can have it."""
        key, token = entry.key, request.token or 0
        if held is None:
            await records.fail(key, token, result_json.failed(not_stored()))
            return Stored((), entry)
        await records.complete(key, token, None, result_json.completed(outcome), ttl=request.ttl)
        return Stored(("l3",), held)


def _taken_over() -> RenderCancelled:
    return RenderCancelled("The render was taken over by another replica.")
