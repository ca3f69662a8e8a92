"""Thumbnails and sprite sheets of stored videos, made at the first request and kept in this process' memory.

A picture is decoded from the finished file, so it costs no render and is not worth a shared tier: any router makes the
same bytes again. It is made in a thread of its own, a few at a time, once for all who ask for it meanwhile, and it is
kept under its video's key together with the digest of the very bytes it shows.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Never

from serve_app.cache.memory import MemoryTier
from serve_app.core import Entry
from serve_app.errors import Busy
from serve_app.flight.single_flight import SingleFlight
from serve_app.media import Variant, spritesheet, thumbnail

KEPT_BYTES = 16 * 2**20
MAX_PENDING = 64  # each holds its video's bytes
THREADS = 2

_MAKERS = {Variant.THUMBNAIL: thumbnail, Variant.SPRITESHEET: spritesheet}


class Thumbnails:
    """The pictures of one router; it belongs to one event loop."""

    def __init__(self, max_bytes: int = KEPT_BYTES) -> None:
        self._kept = MemoryTier(max_bytes)
        self._flights: SingleFlight[Entry, Never] = SingleFlight()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="pictures")
        self._forgotten = 0

    async def get(self, video: Entry, variant: Variant) -> Entry:
        """Return the picture of `video` as an entry with a digest of its own; VIDEO is the video itself.

        Raises Busy when too many wait to be made, RenderFailed for a file that cannot be read.
        """
        if variant is Variant.VIDEO:
            return video
        name = _name(video.key, variant)
        kept = self._kept.get_now(name)
        if kept is not None and kept.meta["of"] == video.digest:
            return kept
        flight_key = f"{name}:{video.digest}"
        if self._flights.find(flight_key) is None and len(self._flights) >= MAX_PENDING:
            raise Busy("Too many pictures wait to be made; try again in 1 s.", retry_after=1)
        flight, _ = self._flights.join_or_lead(flight_key, lambda _: self._make(video, variant))
        return await flight.wait()

    def forget(self, key: str) -> None:
        """Drop the pictures of a video's key."""
        self._forgotten += 1
        for variant in _MAKERS:
            self._kept.delete_now(_name(key, variant))

    def stats(self) -> dict[str, int]:
        """Return what is kept and how many are being made."""
        return {"pending": len(self._flights), **self._kept.stats()}

    def close(self) -> None:
        """Begin no more; who waits for one that was not begun gets RenderCancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _make(self, video: Entry, variant: Variant) -> Entry:
        forgotten = self._forgotten
        loop = asyncio.get_running_loop()
        data = await loop.run_in_executor(self._threads, _MAKERS[variant], video.data)
        picture = Entry.of(video.key, data, {"of": video.digest, "content_type": variant.media_type})
        if forgotten == self._forgotten:  # else its video may have been invalidated while we looked at it
            self._kept.set_now(_name(video.key, variant), picture)
        return picture


def _name(key: str, variant: Variant) -> str:
    return f"{key}:{variant}"
