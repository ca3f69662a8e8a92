"""The books of a folder store's eviction, in SQLite beside the files: shared by processes, alive after a restart.

The same policy as `Gdsf`, with a B-tree where that has a heap. A value is counted, and what goes for it is removed and
counted off, in one write transaction before its file appears; writers of all processes take turns at those. So the
files are within the bound at every moment, and a writer that is killed in between leaves too much counted, never too
little. `reconcile`, which every process begins with, lists the files and sets the rows right. The index is worth
nothing without the files and everything in it but frequencies can be had from them, so one that is damaged is replaced.

WAL without a sync per transaction: losing the last ones to a power cut is one more disagreement. sqlite3.Error and
OSError come out as they are; `FolderStore` maps them.
"""

from __future__ import annotations

import fcntl
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from serve_app.cache.objects.folder_files import FolderFiles, Measure
from serve_app.cache.objects.folder_rows import FolderRows, Gone, connected
from serve_app.cache.objects.quarantine import new_batch

logger = logging.getLogger(__name__)

T = TypeVar("T")
_PAGE = 64
_TURN_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Differences:
    """How rows and files disagree: files without a row, rows without a file, rows with another size."""

    unlisted: tuple[str, ...] = ()
    vanished: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.unlisted) + len(self.vanished) + len(self.resized)


class FolderIndex:
    """The index of `files` at `path`; any thread may call, one at a time gets through.

    patience: seconds that a call waits for its turn; then it raises sqlite3.OperationalError.
    """

    def __init__(self, files: FolderFiles, *, patience: float = 30.0) -> None:
        self._patience = patience
        self.path = files.root / "index.sqlite"
        self._files = files
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._reconciled = False

    def admit(
        self,
        name: str,
        size: int,
        cost: float,
        *,
        max_bytes: int | None,
        uses: dict[str, int],
        temporary: str,
        publish: Callable[[], None],
    ) -> Gone:
        """Count and empty `uses`, evict what must go for `size` more bytes, and `publish` the `temporary` file.

        Raises FileExistsError, with nothing changed, when the file is there, BlockingIOError when a live writer is
        about to publish it, OSError (ENOSPC) when writes in progress take all the room, and what `publish` raises.
        """
        self.begin()

        def reserve(book: FolderRows) -> Gone:
            if self._files.exists(name):
                raise FileExistsError(name)
            if book.is_being_written(name):
                raise BlockingIOError(name)
            book.use(uses)
            book.drop(name)  # a row that a killed writer or a deletion by hand left
            gone = Gone() if max_bytes is None else book.evict(max_bytes - size)
            book.insert(name, size, cost, Path(temporary).name)
            return gone

        gone = self._write(reserve)
        uses.clear()
        # Killed from here on, the row counts bytes that may not be there: too much is counted, never too little.
        try:
            publish()
        except BaseException:
            self._write(lambda book: book.drop(name))
            raise
        self._write(lambda book: book.arrived(name))
        return gone

    def use(self, uses: Mapping[str, int]) -> None:
        """Count how often names were used; those whose file is there without a row get one."""
        self._write(lambda book: book.use(uses))

    def delete(self, name: str, remove: Callable[[str], bool] | None = None) -> bool:
        """Remove the file and the row of `name`; False when there was no file.

        remove: takes the file away in place of deleting it, and tells whether it was there.
        """
        take = remove or self._files.unlink

        def work(book: FolderRows) -> bool:
            removed = take(name)
            if removed or not book.is_being_written(name):
                book.drop(name)
            return removed

        return self._write(work)

    def evict(self, max_bytes: int) -> Gone:
        """Evict some of what is beyond `max_bytes`; nothing more is to be done when nothing goes."""
        self.begin()
        return self._write(lambda book: book.evict(max_bytes, limit=_PAGE))

    def would_evict(self, max_bytes: int) -> Gone:
        """Tell what `evict` would come to in the end, and change nothing."""
        self.begin()

        def work(book: FolderRows) -> Gone:
            gone = Gone()
            for _, size, *_ in book.cheapest():
                if book.state.bytes - gone.bytes <= max_bytes:
                    break
                gone += Gone(1, size)
            return gone

        return self._write(work)

    def frequency(self, name: str) -> float:
        """Return how often a name was used that is held, or was evicted not long ago; 0 for others."""
        return self._write(lambda book: book.frequency(name))

    def size(self) -> tuple[int, int]:
        """Return how many values there are, and their bytes."""
        self.begin()
        return self._write(lambda book: (book.state.entries, book.state.bytes))

    def begin(self) -> None:
        """Set the rows right, once in the life of this process and after the index was lost."""
        with self._turn():
            self._open()
            if not self._reconciled:
                self.reconcile()

    def differences(self) -> Differences:
        """List rows and files and compare them; those that change meanwhile may be told as different."""
        rows = self._write(lambda book: {n: size for n, size in book.sizes() if not book.is_being_written(n)})
        found: dict[str, list[str]] = {"unlisted": [], "vanished": [], "resized": []}
        for name in self._every_name():
            size = rows.pop(name, None)
            measure = self._files.measure(name) if size is not None else None
            if size is None:
                found["unlisted"].append(name)
            elif measure is not None and measure.size != size:
                found["resized"].append(name)
        found["vanished"] += rows
        return Differences(*map(tuple, found.values()))

    def reconcile(self, again: Iterable[str] = ()) -> int:
        """Make the rows agree with the files, keeping frequencies; return how many had to be changed.

        again: names whose rows are made anew, because their size was found to be wrong. The listing happens before the
        transactions, so each name is looked at again inside one. What is new is entered in the order of its last use.
        """
        with self._turn():
            rows, pending = self._write(lambda book: ({name for name, _ in book.sizes()}, book.pending()))
            there = set(self._every_name())
            new = {
                name: found for name in (there - rows) | set(again) if (found := self._files.measure(name)) is not None
            }
            order = [*sorted((rows - there) | set(pending)), *sorted(new, key=lambda name: new[name].used_at)]
            changed = 0
            for start in range(0, len(order), 1000):
                page = order[start : start + 1000]
                changed += self._write(partial(_settled, page, new))
            self._reconciled = True
            return changed

    def rebuild(self, show: Callable[[int, int], None] = lambda done, total: None) -> int:
        """Make all rows anew from the files; frequencies are lost. Returns how many rows there are now."""
        names = list(self._every_name())
        measures: dict[str, Measure] = {}
        for done, name in enumerate(names):
            if (measure := self._files.measure(name)) is not None:
                measures[name] = measure
            show(done + 1, len(names))

        def work(book: FolderRows) -> int:
            since = [name for name, _ in book.sizes() if name not in measures]  # published while we measured
            book.clear()  # but for what is being written now
            for name in [*sorted(measures, key=lambda name: measures[name].used_at), *since]:
                book.settle(name, measures.get(name))
            return book.state.entries

        with self._turn():
            count = self._write(work)
            self._reconciled = True
            return count

    def close(self) -> None:
        """Close the connection; a later call opens it again."""
        with self._turn():
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _every_name(self) -> Iterator[str]:
        for shard in self._files.shards():
            yield from self._files.names(shard)

    def _write(self, work: Callable[[FolderRows], T]) -> T:
        """Run `work` in a write transaction; an index that turns out damaged is replaced, and `work` run again."""
        with self._turn():
            try:
                return self._transaction(work)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError | sqlite3.IntegrityError):
                    raise
                logger.warning("the index %s is damaged (%s) and made anew", self.path, error)
                self._discard()
                return self._transaction(work)

    def _transaction(self, work: Callable[[FolderRows], T]) -> T:
        connection = self._open()
        connection.execute("BEGIN IMMEDIATE")
        try:
            book = FolderRows(connection, self._files)
            result = work(book)
            book.save()
            connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        return result

    def _open(self) -> sqlite3.Connection:
        """Return the connection to the file that is at `path` now: another process may have replaced a damaged one."""
        if self._connection is not None:
            with suppress(FileNotFoundError):
                if self.path.stat().st_ino == self._inode:
                    return self._connection
            self.close()
        with self._locked():
            try:
                self._connection = connected(self.path, self._patience)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                logger.warning("the index %s is damaged (%s) and made anew", self.path, error)
                self._remove()
                self._connection = connected(self.path, self._patience)
        self._inode, self._reconciled = self.path.stat().st_ino, False
        return self._connection

    def _discard(self) -> None:
        """Remove the file this process has open, unless another process has done so already."""
        inode = self._inode
        self.close()
        with self._locked(), suppress(FileNotFoundError):
            if self.path.stat().st_ino == inode:
                self._remove()

    def _remove(self) -> None:
        """Set the index aside, with its log: it may be another program's, or a later release's."""
        batch = f"{new_batch()}-index"
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                self._files.set_aside(self.path.with_name(self.path.name + suffix), batch)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Opening and removing take turns, or a new file could be opened with an old one's log."""
        until = time.monotonic() + self._patience
        with self.path.with_suffix(".lock").open("ab") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise sqlite3.OperationalError("the index is being opened by another process") from None
                    time.sleep(_TURN_SECONDS)
            yield

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Take this process' turn at the index; its threads are not to pile up behind one that hangs."""
        if not self._lock.acquire(timeout=self._patience):
            raise sqlite3.OperationalError("the index is busy")
        try:
            yield
        finally:
            self._lock.release()


def _settled(names: Iterable[str], measures: Mapping[str, Measure], book: FolderRows) -> int:
    return sum(book.settle(name, measures.get(name)) for name in names)
