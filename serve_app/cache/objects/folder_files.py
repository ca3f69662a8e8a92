"""The files of a folder store: whole or not there, in the operating system's own terms and without an event loop.

A value is written to a temporary file, synced, and later linked under its name: the link either appears complete or
fails because another writer was first. A writer that is killed leaves only a temporary file, and its lock on that file
dies with it, which is how a sweep knows a leftover from a write in progress. Files are sharded two levels deep (256 by
256). A new folder is synced into the one above it, so that a power cut cannot lose the way to a value. What is not ours
by its name is never removed. Whatever goes wrong is an OSError; `FolderStore` maps it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkstemp

from serve_app.cache.objects.saved_seconds import HEADER_BYTES, cost_seconds
from serve_app.cache.storage_name import checked, is_name
from serve_app.cache.store_secret import MARKER, MARKER_BYTES

_PREFIX = "encore-"


@dataclass(frozen=True, slots=True)
class Measure:
    """What a stored file says of itself: its bytes, the seconds it saves, and when it was used last (Unix seconds)."""

    size: int
    cost_seconds: float
    used_at: float


class FolderFiles:
    """The objects and the temporary files below `root`, which is made when it is not there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._objects = root / "objects"
        self._temporary = root / "tmp"
        self._quarantine = root / "quarantine"
        self._synced: set[Path] = set()
        self.set_up()

    def set_up(self) -> bool:
        """Make the folders that are not there; True when there were any."""
        missing = [each for each in (self._objects, self._temporary) if not each.is_dir()]
        for each in missing:
            self._make(each)
        return bool(missing)

    def marker(self) -> bytes | None:
        """Return the store's marker, None when there is none."""
        try:
            with (self.root / MARKER).open("rb") as file:
                return file.read(MARKER_BYTES)
        except FileNotFoundError:
            return None

    def mark(self, marker: bytes) -> bytes:
        """Write the marker unless there is one; return the one that is there now."""
        held = self.marker()
        while held is None:
            with suppress(FileExistsError), self.written(marker) as temporary:
                os.link(temporary, self.root / MARKER)
                _sync_folder(self.root)
            held = self.marker()
        return held

    def path(self, name: str) -> Path:
        """Return where `name` lies, or would; ValueError for what is no storage name."""
        return self._objects / checked(name)[:2] / name[2:4] / name

    def read(self, name: str) -> bytes | None:
        """Return the bytes of `name`, None when it is not there."""
        try:
            return self.path(name).read_bytes()
        except FileNotFoundError:
            return None

    def head(self, name: str, length: int) -> bytes | None:
        """Return the first `length` bytes of `name`, None when it is not there."""
        try:
            with self.path(name).open("rb") as file:
                return file.read(length)
        except FileNotFoundError:
            return None

    @contextmanager
    def written(self, data: bytes) -> Iterator[str]:
        """Yield the path of a temporary file that holds `data` safely; it is gone afterwards."""
        descriptor, path = self._locked_file()
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
                yield path
        finally:
            Path(path).unlink(missing_ok=True)

    def link(self, temporary: str, name: str) -> None:
        """Publish a temporary file as `name`; FileExistsError when another writer was first."""
        path = self.path(name)
        self._make(path.parent)
        os.link(temporary, path)
        _sync_folder(path.parent)

    def set_aside(self, path: Path, batch: str) -> None:
        """Move a file into the quarantine, to where it lay below the root; FileNotFoundError when it is not there."""
        place = self._quarantine / batch / path.relative_to(self.root)
        self._make(place.parent)
        path.rename(place)
        _sync_folder(place.parent)

    def quarantined(self) -> list[tuple[str, Path, int]]:
        """Return what lies in quarantine: the batch it came with, its path, its bytes."""
        files = [path for path in self._quarantine.rglob("*") if path.is_file()]
        return [(path.relative_to(self._quarantine).parts[0], path, path.stat().st_size) for path in files]

    def unlink(self, name: str) -> bool:
        """Remove `name`; False when it was not there."""
        try:
            self.path(name).unlink()
        except FileNotFoundError:
            return False
        return True

    def used(self, name: str) -> None:
        """Set the file's time of modification to now: that is where use is kept for a lost index."""
        with suppress(FileNotFoundError):
            os.utime(self.path(name))

    def exists(self, name: str) -> bool:
        """Tell whether `name` is there; unlike Path.exists it hides no other trouble."""
        try:
            self.path(name).stat()
        except FileNotFoundError:
            return False
        return True

    def measure(self, name: str) -> Measure | None:
        """Return what the file of `name` says of itself, None when it is not there."""
        try:
            with self.path(name).open("rb") as file:
                status = os.fstat(file.fileno())
                return Measure(status.st_size, cost_seconds(file.read(HEADER_BYTES)), status.st_mtime)
        except FileNotFoundError:
            return None

    def shards(self) -> list[Path]:
        """Return the outer shards, at most 256 folders; none when the folder is gone."""
        with suppress(FileNotFoundError):
            return sorted(path for path in self._objects.iterdir() if path.is_dir())
        return []

    def names(self, shard: Path) -> list[str]:
        """Return the names in one outer shard; a shard that is removed meanwhile has none."""
        return [path.name for path in self._files(shard) if self._is_value(path)]

    def strays(self) -> list[Path]:
        """Return what lies among the objects and is no value's file."""
        self.set_up()
        loose = [path for path in self._objects.iterdir() if not path.is_dir()]
        inner = [path for shard in self.shards() for path in shard.iterdir() if not path.is_dir()]
        return (
            loose + inner + [path for shard in self.shards() for path in self._files(shard) if not self._is_value(path)]
        )

    def writing(self, temporary: str) -> bool:
        """Tell whether a live writer has the temporary file of that name."""
        path = self._temporary / temporary
        return path.exists() and _abandoned(path, remove=False) is None and path.exists()

    def leftovers(self) -> list[tuple[Path, int]]:
        """Return the temporary files of writers that are gone, with their bytes; no process holds the lock on them."""
        return [found for path in self._ours() if (found := _abandoned(path, remove=False)) is not None]

    def sweep(self) -> list[tuple[Path, int]]:
        """Remove the temporary files of writers that are gone; return them with their bytes."""
        return [found for path in self._ours() if (found := _abandoned(path, remove=True)) is not None]

    def _ours(self) -> list[Path]:
        """Return the temporary files that a store made: the folder may be one that others use too."""
        with suppress(FileNotFoundError):
            return [path for path in self._temporary.glob(f"{_PREFIX}*") if path.is_file() and not path.is_symlink()]
        return []

    def _make(self, folder: Path) -> None:
        """Make a folder and those above it; each of the store's is synced into the one above it, once by each process.

        Once, also when another process made it: that one may have died before its own sync.
        """
        if folder in self._synced and folder.is_dir():
            return
        above = (folder, *folder.parents)
        new = [each for each in above if not each.is_dir()]
        folder.mkdir(parents=True, exist_ok=True)
        ours = [each for each in above if each.is_relative_to(self.root)]
        for each in dict.fromkeys((*new, *(each for each in ours if each not in self._synced))):
            with suppress(PermissionError):  # a folder above the store may be one that we may not read
                _sync_folder(each.parent)
        self._synced.update(ours)

    def _is_value(self, path: Path) -> bool:
        return is_name(path.name) and path == self.path(path.name)

    def _files(self, shard: Path) -> list[Path]:
        files: list[Path] = []
        with suppress(FileNotFoundError, NotADirectoryError):
            for inner in shard.iterdir():
                with suppress(FileNotFoundError, NotADirectoryError):
                    files += inner.iterdir()
        return files

    def _locked_file(self) -> tuple[int, str]:
        while True:
            descriptor, path = mkstemp(prefix=_PREFIX, dir=self._temporary)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # A sweep that came between the two lines above took the file away: make another.
            if os.fstat(descriptor).st_nlink:
                return descriptor, path
            os.close(descriptor)


def _abandoned(path: Path, *, remove: bool) -> tuple[Path, int] | None:
    with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if remove:
            path.unlink()
        return path, os.fstat(file.fileno()).st_size
    return None


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
