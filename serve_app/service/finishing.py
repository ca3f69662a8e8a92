"""Frames to a stored file: encode, store, and only then call it finished (design §5.7).

The core of the VideoEncoder deployment, as plain Python. Equal frames give equal bytes; when a tier already holds other
bytes under the key (GPUs are not bit-reproducible), those are adopted, so that everybody sees one file.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict

from serve_app.cache.cache import TieredCache
from serve_app.core import Entry, Finished, Frames, RenderRequest
from serve_app.media.media import encode_mp4
from serve_app.telemetry import Encoded, Telemetry, span


class Finisher:
    """Encodes and stores finished videos."""

    def __init__(self, cache: TieredCache, telemetry: Telemetry) -> None:
        self._cache = cache
        self._telemetry = telemetry

    async def finish(self, request: RenderRequest, frames: Frames, render_seconds: float) -> Finished:
        """Encode `frames` [num_frames, height, width, 3] and store the file; raises RenderFailed.

        The entry's metadata carries the spec, the cost and the time, so a video explains itself wherever it is found.
        """
        spec = request.spec
        began = time.perf_counter()
        with span("encode", frames=len(frames)):
            data = await asyncio.to_thread(encode_mp4, frames, fps=spec.fps, quality=spec.quality)
        encode_seconds = time.perf_counter() - began
        self._telemetry.emit(Encoded(encode_seconds, len(data)))
        meta = {
            "spec": asdict(spec),
            "model_fingerprint": request.model_fingerprint,
            "latents_key": request.keys.latents,
            "content_type": "video/mp4",
            "created_at": time.time(),
            "render_seconds": round(render_seconds, 4),
            "encode_seconds": round(encode_seconds, 4),
        }
        with span("store", bytes=len(data)):
            stored = await self._cache.put(Entry.of(request.keys.video, data, meta))
        return Finished(stored.entry, stored.tiers, render_seconds, encode_seconds)
