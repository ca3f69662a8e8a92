"""The files of a folder store: whole or not there, in the operating system's own terms and without an event loop.

A value is written to a temporary file, synced, and later linked under its name: the link either appears complete or
fails because somebody was first. A writer that is killed leaves only a temporary file, and its lock on that file dies
with it, which is how a sweep knows a leftover from a write in progress. Files are sharded two levels deep (256 by 256).
Whatever goes wrong is an OSError; `FolderStore` maps it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkstemp

from serve_app.cache.cost import HEADER_BYTES, cost_seconds
from serve_app.cache.name import checked, is_name


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
        self._objects.mkdir(parents=True, exist_ok=True)
        self._temporary.mkdir(exist_ok=True)

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
        """Publish a temporary file as `name`; FileExistsError when somebody was first."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(temporary, path)
        _sync_folder(path.parent)

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
        """Return the outer shards, at most 256 folders."""
        return sorted(path for path in self._objects.iterdir() if path.is_dir())

    def names(self, shard: Path) -> list[str]:
        """Return the names in one outer shard; a shard that is removed meanwhile has none."""
        return [path.name for path in self._files(shard) if self._is_value(path)]

    def strays(self) -> list[Path]:
        """Return what lies among the objects and is no value's file."""
        loose = [path for path in self._objects.iterdir() if not path.is_dir()]
        inner = [path for shard in self.shards() for path in shard.iterdir() if not path.is_dir()]
        return (
            loose + inner + [path for shard in self.shards() for path in self._files(shard) if not self._is_value(path)]
        )

    def writing(self, temporary: str) -> bool:
        """Tell whether somebody alive is at the temporary file of that name."""
        path = self._temporary / temporary
        return path.exists() and _abandoned(path, remove=False) is None and path.exists()

    def leftovers(self) -> list[tuple[Path, int]]:
        """Return the temporary files of writers that are gone, with their bytes; nobody holds the lock on them."""
        return [found for path in self._temporary.iterdir() if (found := _abandoned(path, remove=False)) is not None]

    def sweep(self) -> list[tuple[Path, int]]:
        """Remove the temporary files of writers that are gone; return them with their bytes."""
        return [found for path in self._temporary.iterdir() if (found := _abandoned(path, remove=True)) is not None]

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
            descriptor, path = mkstemp(dir=self._temporary)
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
