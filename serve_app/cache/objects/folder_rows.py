"""The rows of a folder's index: all of its SQL, and the arithmetic of `Gdsf` on it, within one transaction.

A priority is made here as it is there, a B-tree over (priority, turn) stands where the heap does, and the sums that
would need a look at all rows are kept in one row beside them.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from serve_app.cache.objects.folder_files import FolderFiles, Measure
from serve_app.cache.objects.gdsf import GHOSTS_PER_VALUE, worth

_VERSION = 1
_SCHEMA = """
    CREATE TABLE entries (
        name BLOB PRIMARY KEY, bytes INTEGER NOT NULL, cost REAL NOT NULL,
        frequency REAL NOT NULL, priority REAL NOT NULL, turn INTEGER NOT NULL, pending TEXT
    ) WITHOUT ROWID;
    CREATE INDEX cheapest ON entries (priority, turn) WHERE pending IS NULL;
    CREATE INDEX waiting ON entries (pending) WHERE pending IS NOT NULL;
    CREATE TABLE ghosts (turn INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, frequency REAL NOT NULL);
    CREATE TABLE state (
        age REAL NOT NULL, turn INTEGER NOT NULL, bytes INTEGER NOT NULL, entries INTEGER NOT NULL,
        ghosts INTEGER NOT NULL
    );
    INSERT INTO state VALUES (0, 0, 0, 0, 0);
"""


@dataclass(frozen=True, slots=True)
class Gone:
    """What was evicted."""

    count: int = 0
    bytes: int = 0

    def __add__(self, other: Gone) -> Gone:
        return Gone(self.count + other.count, self.bytes + other.bytes)


@dataclass(slots=True)
class Sums:
    """The sums: the policy's age, the last turn, bytes and number of values, number of remembered names."""

    age: float
    turn: int
    bytes: int
    entries: int
    ghosts: int


class FolderRows:
    """The rows, inside one transaction; `state` is written back by `save`."""

    def __init__(self, connection: sqlite3.Connection, files: FolderFiles) -> None:
        self._sql = connection
        self._files = files
        self.state = Sums(*connection.execute("SELECT age, turn, bytes, entries, ghosts FROM state").fetchone())

    def save(self) -> None:
        """Write `state` back."""
        state = self.state
        self._sql.execute(
            "UPDATE state SET age = ?, turn = ?, bytes = ?, entries = ?, ghosts = ?",
            (state.age, state.turn, state.bytes, state.entries, state.ghosts),
        )

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Yield every name with its bytes."""
        for name, size in self._sql.execute("SELECT name, bytes FROM entries"):
            yield name.hex(), size

    def cheapest(self) -> Iterator[tuple[str, int, float, float]]:
        """Yield name, bytes, frequency and priority in the order in which values would go."""
        rows = self._sql.execute(
            "SELECT name, bytes, frequency, priority FROM entries WHERE pending IS NULL ORDER BY priority, turn"
        )
        for name, *rest in rows:
            yield name.hex(), *rest

    def frequency(self, name: str) -> float:
        """Return how often a name was used that is held, or was evicted not long ago; 0 for others."""
        for table in ("entries", "ghosts"):
            query = f"SELECT frequency FROM {table} WHERE name = ?"  # noqa: S608 - two words of our own
            if (row := self._sql.execute(query, (bytes.fromhex(name),)).fetchone()) is not None:
                return float(row[0])
        return 0.0

    def use(self, uses: Mapping[str, int]) -> None:
        """Count uses; a file without a row gets one."""
        for name, times in uses.items():
            row = self._sql.execute(
                "SELECT bytes, cost, frequency FROM entries WHERE name = ?", (bytes.fromhex(name),)
            ).fetchone()
            if row is None:
                self.settle(name, None)
                continue
            size, cost, frequency = row
            self._sql.execute(
                "UPDATE entries SET frequency = ?, priority = ?, turn = ? WHERE name = ?",
                (frequency + times, self._priority(frequency + times, cost, size), self._turn(), bytes.fromhex(name)),
            )
            self._files.used(name)

    def insert(self, name: str, size: int, cost: float, pending: str | None = None) -> None:
        """Enter a value as used once now, and as often as is remembered of it.

        pending: the temporary file of a value whose own file is yet to come; it is counted and cannot be evicted.
        """
        self.drop(name)
        frequency = 1 + self._haunted(name)
        self._sql.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)",
            (bytes.fromhex(name), size, cost, frequency, self._priority(frequency, cost, size), self._turn(), pending),
        )
        self.state.bytes += size
        self.state.entries += 1

    def arrived(self, name: str) -> None:
        """The file of a pending value is there."""
        self._sql.execute("UPDATE entries SET pending = NULL WHERE name = ?", (bytes.fromhex(name),))

    def pending(self) -> list[str]:
        """Return the names of values whose files are yet to come, or came just before their writer was killed."""
        rows = self._sql.execute("SELECT name FROM entries WHERE pending IS NOT NULL")
        return [name.hex() for (name,) in rows]

    def is_being_written(self, name: str) -> bool:
        """Tell whether a value is pending and its writer alive."""
        row = self._sql.execute("SELECT pending FROM entries WHERE name = ?", (bytes.fromhex(name),)).fetchone()
        return row is not None and row[0] is not None and self._files.writing(row[0])

    def drop(self, name: str) -> bool:
        """Remove a row; False when there was none."""
        row = self._sql.execute("DELETE FROM entries WHERE name = ? RETURNING bytes", (bytes.fromhex(name),)).fetchone()
        if row is None:
            return False
        self.state.bytes -= row[0]
        self.state.entries -= 1
        return True

    def evict(self, max_bytes: int, limit: int | None = None) -> Gone:
        """Remove the cheapest files and their rows until `max_bytes` or the limit is reached.

        Raises OSError (ENOSPC) first when what cannot be evicted, because it is being written, is too much already.
        """
        if self.state.bytes > max_bytes and self._pending_bytes() > max_bytes:
            for name in self.pending():  # their writers may have been killed
                self.settle(name, None)
            if self._pending_bytes() > max_bytes:
                raise OSError(errno.ENOSPC, "writes in progress take all the room there is")
        gone = Gone()
        while self.state.bytes > max_bytes and (limit is None or gone.count < limit):
            name, size, frequency, priority = next(self.cheapest())
            self._files.unlink(name)
            self.drop(name)
            self.state.age = priority
            self._haunt(name, frequency)
            gone += Gone(1, size)
        return gone

    def settle(self, name: str, measure: Measure | None) -> bool:
        """Make the row of `name` agree with its file; True when that changed something."""
        if not self._files.exists(name):
            return not self.is_being_written(name) and self.drop(name)
        row = self._sql.execute("SELECT bytes, pending FROM entries WHERE name = ?", (bytes.fromhex(name),)).fetchone()
        measure = measure or self._files.measure(name)
        if measure is None or (row is not None and row == (measure.size, None)):
            return False
        if row is not None and row[0] == measure.size:
            self.arrived(name)
        else:
            self.insert(name, measure.size, measure.cost_seconds)
        return True

    def clear(self) -> None:
        """Remove all memories, and all rows but those of values that are being written."""
        self._sql.execute("DELETE FROM ghosts")
        self.state.ghosts = 0
        for name, _ in list(self.sizes()):
            if not self.is_being_written(name):
                self.drop(name)

    def _pending_bytes(self) -> int:
        query = "SELECT coalesce(sum(bytes), 0) FROM entries WHERE pending IS NOT NULL"
        return int(self._sql.execute(query).fetchone()[0])

    def _priority(self, frequency: float, cost: float, size: int) -> float:
        return self.state.age + worth(frequency, cost, size)

    def _turn(self) -> int:
        self.state.turn += 1
        return self.state.turn

    def _haunt(self, name: str, frequency: float) -> None:
        self._sql.execute("INSERT INTO ghosts VALUES (?, ?, ?)", (self._turn(), bytes.fromhex(name), frequency))
        self.state.ghosts += 1
        excess = self.state.ghosts - int(GHOSTS_PER_VALUE * (self.state.entries + 1))
        if excess > 0:
            self._sql.execute(
                "DELETE FROM ghosts WHERE turn IN (SELECT turn FROM ghosts ORDER BY turn LIMIT ?)", (excess,)
            )
            self.state.ghosts -= excess

    def _haunted(self, name: str) -> float:
        row = self._sql.execute(
            "DELETE FROM ghosts WHERE name = ? RETURNING frequency", (bytes.fromhex(name),)
        ).fetchone()
        self.state.ghosts -= row is not None
        return 0.0 if row is None else float(row[0])


def connected(path: Path, patience: float) -> sqlite3.Connection:
    """Open the index at `path`, made when it is not there; DatabaseError for what is none of this version.

    patience: seconds that a transaction waits for others' to end.
    """
    connection = sqlite3.connect(path, timeout=patience, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
        elif version != _VERSION:
            raise sqlite3.DatabaseError(f"version {version} instead of {_VERSION}")
        connection.execute("SELECT * FROM state").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection
