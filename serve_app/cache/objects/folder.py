"""L3 in a local folder: write-once files that are whole or not there, shared by the processes of one machine.

`FolderFiles` makes files appear at once or not at all, `FolderIndex` keeps them within `max_bytes` at every moment,
over all processes, and lets go first what saves the fewest seconds per byte; here they become an ObjectStore. A read
touches nothing but its file: how often names were used is gathered in memory and told to the index with the next write
or every few seconds, so a killed process loses seconds of counting. The file system must be a local one, with hard
links and `flock`.

A disk can hang and a lock can be held: every call ends within `timeout`, and reads have threads of their own, so that
they wait for no writer. Folders, index and marker that are gone are made again by the next write.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from serve_app.cache.objects.folder_files import FolderFiles
from serve_app.cache.objects.folder_index import FolderIndex
from serve_app.cache.objects.folder_rows import Gone
from serve_app.cache.objects.saved_seconds import HEADER_BYTES, cost_seconds
from serve_app.cache.store_secret import Guard, marker_of, require_own
from serve_app.errors import ForeignStore, TierError, TierRefused
from serve_app.tasks import detached
from serve_app.telemetry import Evicted, Telemetry

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_FLUSH_SECONDS = 5.0
_FLUSH_NAMES = 256
_TURN_SECONDS = 0.005
_READERS, _WRITERS = 8, 4
_PATIENCE = 0.8
"""The share of a call's time that it may wait for its turn at the index: its thread ends before who waits for it."""


class FolderStore:
    """Frames as files under `root`, at most `max_bytes` of them (None: unbounded).

    secret: the deployment's; the folder must have been written under it (None: not checked). timeout: seconds for any
    call; what takes longer raises TierError. sweep: begin by removing the temporary files of writers that are gone.
    """

    def __init__(
        self,
        root: Path,
        *,
        max_bytes: int | None = None,
        secret: bytes | None = None,
        timeout: float = 5.0,
        telemetry: Telemetry | None = None,
        sweep: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_bytes = max_bytes
        self._timeout = timeout
        self._telemetry = telemetry or Telemetry()
        self._clock = clock
        self._uses: Counter[str] = Counter()
        self._flushed_at = clock()
        self._flushing: asyncio.Task[None] | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._writers: ThreadPoolExecutor | None = None
        self._marker = None if secret is None else marker_of(secret)
        self._guard = None if secret is None else Guard(partial(require_own, self, secret))
        try:
            self.files = FolderFiles(root)
            if sweep:
                self.files.sweep()
        except OSError as error:
            raise TierError(f"The folder cannot be used: {error.strerror}.") from error
        self.index = FolderIndex(self.files, patience=_PATIENCE * timeout)

    async def get(self, name: str) -> bytes | None:
        """Return the bytes and count them as used."""
        data = await self.inspect(name)
        if data is not None:
            self._count(name)
        return data

    async def inspect(self, name: str) -> bytes | None:
        """Return the bytes as `get` does, but count no use."""
        return await self._read(partial(self.files.read, name))

    async def head(self, name: str, length: int) -> bytes | None:
        """Return the first `length` bytes, counting no use."""
        return await self._read(partial(self.files.head, name, length))

    async def put(self, name: str, data: bytes) -> bytes | None:
        """Store `data` unless the name is taken; return what is stored, None when larger than the bound allows."""
        if self.max_bytes is not None and len(data) > self.max_bytes:
            return None
        uses, self._uses = dict(self._uses), Counter()
        try:
            held, gone = await self._write(partial(self._put, name, data, uses))
        except BaseException:
            self._uses.update(dict(uses))  # a copy: the thread may be on its way still, and empty it
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
        return await self.contains(name) and await self._write(partial(self.index.delete, name))

    async def contains(self, name: str) -> bool:
        """Tell whether the file is there."""
        return await self._read(partial(self.files.exists, name))

    async def touch(self, name: str) -> None:
        """Count the file as used."""
        if await self.contains(name):
            self._count(name)

    async def names(self) -> AsyncIterator[str]:
        """Yield every stored name, one of the 256 outer shards at a time; what is no value's file is passed over."""
        for shard in await self._read(self.files.shards):
            for name in await self._read(partial(self.files.names, shard)):
                yield name

    async def aclose(self) -> None:
        """Tell the index of the uses it has not heard of, and close it."""
        if self._flushing is not None:
            await asyncio.gather(self._flushing, return_exceptions=True)
        await self._flush()
        await self._in(self._writers, self.index.close, TierError)
        for lane in (self._readers, self._writers):
            if lane is not None:
                lane.shutdown(wait=False)
        self._readers = self._writers = None

    async def passed(self) -> None:
        """Return when the folder is known to be of our secret; raises ForeignStore, TierError."""
        if self._guard is not None:
            await self._guard.passed()

    @property
    def where(self) -> str:
        """How a person knows the folder."""
        return f"The store at {self.files.root} (ENCORE_L3_URL, --cache-dir)"

    async def marker(self) -> bytes | None:
        """Return the folder's marker."""
        return await self._in(self._reading(), self.files.marker, TierError)

    async def mark(self, marker: bytes) -> bytes:
        """Write the marker unless there is one; return the one that is there."""

        def work() -> bytes:
            self.files.set_up()
            return self.files.mark(marker)

        return await self._in(self._writing(), work, TierRefused)

    async def sample(self, count: int) -> AsyncIterator[tuple[str, bytes]]:
        """Yield some names with the first bytes of their values."""
        lane = self._reading()
        for shard in await self._in(lane, self.files.shards, TierError):
            for name in await self._in(lane, partial(self.files.names, shard), TierError):
                head = await self._in(lane, partial(self.files.head, name, HEADER_BYTES), TierError)
                if head is not None:
                    yield name, head
                    count -= 1
                if not count:
                    return

    async def in_thread(self, call: Callable[[], _T], failure: type[TierError] = TierError) -> _T:
        """Run `call`, however long it takes, beside the event loop; raises `failure` for what file system or index do.

        For who looks after a store; what a server asks has an end.
        """
        try:
            return await asyncio.to_thread(call)
        except (OSError, sqlite3.Error) as error:
            raise _failure(failure, error) from error

    async def _read(self, call: Callable[[], _T]) -> _T:
        await self.passed()
        return await self._in(self._reading(), call, TierError)

    async def _write(self, call: Callable[[], _T]) -> _T:
        """Run what takes a turn at the index; a failure says nothing of reading."""
        await self.passed()
        return await self._in(self._writing(), call, TierRefused)

    async def _in(self, lane: ThreadPoolExecutor | None, call: Callable[[], _T], failure: type[TierError]) -> _T:
        """Run `call` in a thread of `lane` within the time; one that hangs keeps its thread, and no other's."""
        try:
            async with asyncio.timeout(self._timeout):
                return await asyncio.get_running_loop().run_in_executor(lane or self._writing(), call)
        except TimeoutError as error:
            raise failure(f"Folder: no answer within {self._timeout:g} s (l3_timeout_seconds).") from error
        except (OSError, sqlite3.Error) as error:
            raise _failure(failure, error) from error

    def _reading(self) -> ThreadPoolExecutor:
        self._readers = self._readers or ThreadPoolExecutor(_READERS, "l3-read")
        return self._readers

    def _writing(self) -> ThreadPoolExecutor:
        self._writers = self._writers or ThreadPoolExecutor(_WRITERS, "l3-write")
        return self._writers

    def _put(self, name: str, data: bytes, uses: dict[str, int]) -> tuple[bytes, Gone]:
        self._set_up()
        cost, until = cost_seconds(data), time.monotonic() + self._timeout
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
                    if time.monotonic() > until:
                        raise OSError(errno.EBUSY, "another writer does not publish this name") from None
                    time.sleep(_TURN_SECONDS)  # another writer is about to publish this name
                except FileExistsError:
                    # Evicted or deleted between the attempt and this read: the name is free again.
                    if (held := self.files.read(name)) is not None:
                        return held, Gone()
                else:
                    return data, gone

    def _set_up(self) -> None:
        """Make again what is gone since the start; raises ForeignStore when it belongs to another server by now."""
        if self.files.set_up():
            logger.warning("the folder %s was gone, or parts of it, and is made again", self.files.root)
        if self._marker is not None and self.files.mark(self._marker) != self._marker:
            raise ForeignStore(f"{self.where} is of another secret since this server began; nothing is written there.")

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
            await self._write(partial(self.index.use, uses))
        except TierError as error:
            logger.warning("uses of %d values could not be counted: %s", len(uses), error)


def _failure(failure: type[TierError], error: OSError | sqlite3.Error) -> TierError:
    told = error.strerror if isinstance(error, OSError) else error
    return failure(f"Folder: {type(error).__name__}: {told}")
