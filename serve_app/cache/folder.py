"""L3 in a local folder: write-once files that are whole or not there, shared by the processes of one machine.

A value is written to a temporary file, synced and hard-linked under its name: the link either appears complete or
fails because somebody was first, whose bytes are then adopted. A writer that is killed leaves only a temporary file,
and its lock on that file dies with it, which is how the next start knows a leftover from a write in progress. The file
system must have hard links and `flock`. Files are sharded two levels deep (256 by 256). The folder is bounded by
dropping what was used longest ago; use is kept in the files' modification time, because access times are often off.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import mkstemp
from typing import TypeVar

from serve_app.cache.name import checked, is_name
from serve_app.errors import TierError, TierRefused
from serve_app.telemetry import Evicted, Telemetry

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class FolderStore:
    """Frames as files under `root`, at most `max_bytes` of them (None: unbounded).

    Each process counts what it wrote and looks at the whole folder after every `max_bytes`/20, so W writing
    processes overshoot by at most (W - 1)/20 of the bound; one process alone never does.
    """

    def __init__(self, root: Path, *, max_bytes: int | None = None, telemetry: Telemetry | None = None) -> None:
        self._objects = root / "objects"
        self._temporary = root / "tmp"
        self._max_bytes = max_bytes
        self._slack = (max_bytes or 0) // 20
        self._written: int | None = None  # since the last look at the folder; None: never looked
        self._bytes = 0
        self._lock = threading.Lock()
        self._telemetry = telemetry or Telemetry()
        try:
            self._objects.mkdir(parents=True, exist_ok=True)
            self._temporary.mkdir(exist_ok=True)
            self._sweep()
        except OSError as error:
            raise TierError(f"The folder cannot be used: {error.strerror}.") from error

    async def get(self, name: str) -> bytes | None:
        """Return the bytes and count them as used now."""
        return await self._in_thread(lambda: self._read(self._path(name)))

    async def put(self, name: str, data: bytes) -> bytes | None:
        """Store `data` unless the name is taken; return what is stored, None when larger than the bound allows."""
        if self._max_bytes is not None and len(data) > self._max_bytes - self._slack:
            return None
        held = await self._in_thread(lambda: self._write(self._path(name), data), TierRefused)  # what is there is read
        if held is data and self._max_bytes is not None:
            await self._evict_after(len(data))
        return held

    async def delete(self, name: str) -> bool:
        """Remove the file; True when it was there."""
        return await self._in_thread(lambda: _unlink(self._path(name)))

    async def contains(self, name: str) -> bool:
        """Tell whether the file is there."""
        return await self._in_thread(self._path(name).exists)

    async def touch(self, name: str) -> None:
        """Count the file as used now."""
        await self._in_thread(lambda: _use(self._path(name)))

    async def names(self) -> AsyncIterator[str]:
        """Yield every stored name, one of the 256 outer shards at a time; what is no value's file is passed over."""
        for shard in await self._in_thread(lambda: sorted(self._objects.iterdir())):
            for name in await self._in_thread(partial(_names, shard)):
                yield name

    async def aclose(self) -> None:
        """Nothing stays open."""

    async def _evict_after(self, written: int) -> None:
        try:
            count, freed = await self._in_thread(lambda: self._make_room(written))
        except TierError as error:  # what was written is stored all the same
            logger.warning("the folder cannot be kept within its bound: %s", error)
            return
        if count:
            self._telemetry.emit(Evicted("l3", count, freed))

    def _path(self, name: str) -> Path:
        return self._objects / checked(name)[:2] / name[2:4] / name

    async def _in_thread(self, call: Callable[[], _T], failure: type[TierError] = TierError) -> _T:
        try:
            return await asyncio.to_thread(call)
        except OSError as error:
            raise failure(f"Folder: {type(error).__name__}: {error.strerror}") from error

    def _read(self, path: Path) -> bytes | None:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        _use(path)
        return data

    def _write(self, path: Path, data: bytes) -> bytes:
        held = self._read(path)
        if held is not None:
            return held
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._temporary_file(data) as temporary:
            while True:
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    # Evicted or deleted between the link and this read: the name is free again.
                    if (held := self._read(path)) is not None:
                        return held
                else:
                    _sync_folder(path.parent)
                    return data

    @contextmanager
    def _temporary_file(self, data: bytes) -> Iterator[str]:
        descriptor, path = self._locked_file()
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
                yield path
        finally:
            Path(path).unlink(missing_ok=True)

    def _locked_file(self) -> tuple[int, str]:
        while True:
            descriptor, path = mkstemp(dir=self._temporary)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # A sweep that came between the two lines above took the file away: make another.
            if os.fstat(descriptor).st_nlink:
                return descriptor, path
            os.close(descriptor)

    def _sweep(self) -> None:
        """Remove temporary files whose writer is gone: nobody holds the lock on them."""
        for path in self._temporary.iterdir():
            with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()

    def _make_room(self, written: int) -> tuple[int, int]:
        """Account for `written` bytes; return how many files and bytes were dropped to stay within the bound."""
        bound = self._max_bytes or 0
        with self._lock:
            if self._written is not None:
                self._written += written
                self._bytes += written
                if self._written <= self._slack and self._bytes <= bound:
                    return 0, 0
            return self._evict(bound - self._slack)

    def _evict(self, bound: int) -> tuple[int, int]:
        files = sorted(self._files())
        self._bytes = sum(size for _, size, _ in files)
        self._written = 0
        count, before = 0, self._bytes
        for _, size, path in files:
            if self._bytes <= bound:
                break
            _unlink(path)
            self._bytes -= size
            count += 1
        return count, before - self._bytes

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        for path in self._objects.glob("*/*/*"):
            with suppress(FileNotFoundError):
                status = path.stat()
                yield status.st_mtime_ns, status.st_size, path


def _names(shard: Path) -> list[str]:
    """Return the names of one outer shard; a shard that is removed meanwhile has none."""
    names: list[str] = []
    with suppress(FileNotFoundError, NotADirectoryError):
        for inner in shard.iterdir():
            with suppress(FileNotFoundError, NotADirectoryError):
                files = [path.name for path in inner.iterdir()]
                names += [each for each in files if is_name(each) and each.startswith(shard.name + inner.name)]
    return names


def _use(path: Path) -> None:
    with suppress(OSError):  # gone, or on a file system that is read-only just now
        os.utime(path)


def _unlink(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
