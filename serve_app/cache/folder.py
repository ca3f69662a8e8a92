"""L3 in a local folder: write-once files that are whole or not there, shared by the processes of one machine.

`FolderFiles` makes files appear at once or not at all, `FolderIndex` keeps them within `max_bytes` at every moment,
over all processes, and lets go first what saves the fewest seconds per byte; here they become an ObjectStore. A read
touches nothing but its file: how often names were used is gathered in memory and told to the index with the next write
or every few seconds, so a killed process loses seconds of counting. The file system must be a local one, with hard
links and `flock`.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from serve_app.cache.cost import cost_seconds
from serve_app.cache.detached import detached
from serve_app.cache.folder_book import Gone
from serve_app.cache.folder_files import FolderFiles
from serve_app.cache.folder_index import FolderIndex
from serve_app.errors import TierError, TierRefused
from serve_app.telemetry import Evicted, Telemetry

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_FLUSH_SECONDS = 5.0
_FLUSH_NAMES = 256
_TURN_SECONDS = 0.005


class FolderStore:
    """Frames as files under `root`, at most `max_bytes` of them (None: unbounded).

    sweep: begin by removing the temporary files of writers that are gone.
    """

    def __init__(
        self,
        root: Path,
        *,
        max_bytes: int | None = None,
        telemetry: Telemetry | None = None,
        sweep: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_bytes = max_bytes
        self._telemetry = telemetry or Telemetry()
        self._clock = clock
        self._uses: Counter[str] = Counter()
        self._flushed_at = clock()
        self._flushing: asyncio.Task[None] | None = None
        try:
            self.files = FolderFiles(root)
            if sweep:
                self.files.sweep()
        except OSError as error:
            raise TierError(f"The folder cannot be used: {error.strerror}.") from error
        self.index = FolderIndex(self.files)

    async def get(self, name: str) -> bytes | None:
        """Return the bytes and count them as used."""
        data = await self.inspect(name)
        if data is not None:
            self._count(name)
        return data

    async def inspect(self, name: str) -> bytes | None:
        """Return the bytes as `get` does, but count no use."""
        return await self.in_thread(partial(self.files.read, name))

    async def head(self, name: str, length: int) -> bytes | None:
        """Return the first `length` bytes, counting no use."""
        return await self.in_thread(partial(self.files.head, name, length))

    async def put(self, name: str, data: bytes) -> bytes | None:
        """Store `data` unless the name is taken; return what is stored, None when larger than the bound allows."""
        if self.max_bytes is not None and len(data) > self.max_bytes:
            return None
        uses, self._uses = self._uses, Counter()
        try:
            held, gone = await self.in_thread(lambda: self._put(name, data, uses), TierRefused)
        except BaseException:
            self._uses.update(uses)
            raise
        self._flushed_at = self._clock()
        if held is not data:
            self._uses.update(uses)
            self._count(name)
        if gone.count:
            self._telemetry.emit(Evicted("l3", gone.count, gone.bytes))
        return held

    async def delete(self, name: str) -> bool:
        """Remove the file; True when it was there."""
        self._uses.pop(name, None)
        return await self.in_thread(lambda: self.files.exists(name) and self.index.delete(name))

    async def contains(self, name: str) -> bool:
        """Tell whether the file is there."""
        return await self.in_thread(partial(self.files.exists, name))

    async def touch(self, name: str) -> None:
        """Count the file as used."""
        if await self.contains(name):
            self._count(name)

    async def names(self) -> AsyncIterator[str]:
        """Yield every stored name, one of the 256 outer shards at a time; what is no value's file is passed over."""
        for shard in await self.in_thread(self.files.shards):
            for name in await self.in_thread(partial(self.files.names, shard)):
                yield name

    async def aclose(self) -> None:
        """Tell the index of the uses it has not heard of, and close it."""
        if self._flushing is not None:
            await asyncio.gather(self._flushing, return_exceptions=True)
        await self._flush()
        await asyncio.to_thread(self.index.close)

    async def in_thread(self, call: Callable[[], _T], failure: type[TierError] = TierError) -> _T:
        """Run `call` beside the event loop; raises `failure` for what the file system or the index raises."""
        try:
            return await asyncio.to_thread(call)
        except (OSError, sqlite3.Error) as error:
            told = error.strerror if isinstance(error, OSError) else error
            raise failure(f"Folder: {type(error).__name__}: {told}") from error

    def _put(self, name: str, data: bytes, uses: Counter[str]) -> tuple[bytes, Gone]:
        cost = cost_seconds(data)
        if (held := self.files.read(name)) is not None:
            return held, Gone()
        with self.files.written(data) as temporary:
            publish = partial(self.files.link, temporary, name)
            while True:
                try:
                    gone = self.index.admit(
                        name,
                        len(data),
                        cost,
                        max_bytes=self.max_bytes,
                        uses=uses,
                        temporary=temporary,
                        publish=publish,
                    )
                except BlockingIOError:
                    time.sleep(_TURN_SECONDS)  # another writer is about to publish this name
                except FileExistsError:
                    # Evicted or deleted between the attempt and this read: the name is free again.
                    if (held := self.files.read(name)) is not None:
                        return held, Gone()
                else:
                    return data, gone

    def _count(self, name: str) -> None:
        self._uses[name] += 1
        due = len(self._uses) >= _FLUSH_NAMES or self._clock() - self._flushed_at >= _FLUSH_SECONDS
        if due and (self._flushing is None or self._flushing.done()):
            self._flushing = detached(self._flush())

    async def _flush(self) -> None:
        uses, self._uses = self._uses, Counter()
        self._flushed_at = self._clock()
        if not uses:
            return
        try:
            await self.in_thread(partial(self.index.use, uses))
        except TierError as error:
            logger.warning("uses of %d values could not be counted: %s", len(uses), error)
