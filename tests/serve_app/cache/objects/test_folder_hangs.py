"""A folder whose lock is held, whose disk hangs, or that is gone: every call ends in time, and it is made again."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from serve_app.cache.cache import TieredCache
from serve_app.cache.objects.folder import FolderStore
from serve_app.cache.objects.folder_files import FolderFiles
from serve_app.cache.store_secret import MARKER, marker_of
from serve_app.core import Entry, Outcome
from serve_app.errors import TierError, TierRefused
from serve_app.telemetry import TierRead, TierWritten

SECRET, TIMEOUT = b"secret", 0.3
KEY, OTHER = "1f" * 32, "2e" * 32
LONG = 20.0
"""Seconds within which even a slow machine ends what is to take a fraction of one, and a hang does not end."""


def name(number: int) -> str:
    return f"{number:064x}"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the index's write lock, as a process that was stopped in a transaction does."""
    with sqlite3.connect(folder / "index.sqlite", isolation_level=None) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
    connection.close()


async def test_a_held_lock_ends_writes_and_holds_no_read(tmp_path: Path) -> None:
    """As long as another process holds the index, a put and a deletion fail within the time, and reads go on."""
    store = FolderStore(tmp_path, timeout=TIMEOUT)
    await store.put(name(1), b"data")
    with locked(tmp_path):
        writes = [asyncio.create_task(store.put(name(number), b"more")) for number in range(2, 30)]
        began = time.monotonic()
        for _ in range(50):
            assert await store.get(name(1)) == b"data"
        assert not all(write.done() for write in writes) or time.monotonic() - began > TIMEOUT
        for result in await asyncio.gather(*writes, return_exceptions=True):
            assert isinstance(result, TierRefused)
        with pytest.raises(TierRefused):
            await store.delete(name(1))
        assert time.monotonic() - began < LONG
    assert await store.put(name(2), b"more") == b"more"
    await store.aclose()


async def test_the_breaker_counts_what_takes_too_long(tmp_path: Path, recorder: Any) -> None:
    """Three writes that end by time open the breaker of storing, not that of reading; what was stored is served."""
    store, entry = FolderStore(tmp_path, timeout=TIMEOUT), Entry.of(KEY, b"data")
    cache = TieredCache("video", secret=SECRET, l3=store, telemetry=recorder)
    await cache.put(entry)
    with locked(tmp_path):
        for _ in range(4):
            assert (await cache.put(Entry.of(OTHER, b"more"))).tiers == ()
        stats = cache.stats()["l3"]
        assert (stats["breaker"], stats["store_breaker"]) == ("closed", "open")
        assert await cache.get(KEY) == (entry, Outcome.L3)
    assert recorder.results(TierWritten, "l3") == ["stored", *["error"] * 4]
    await cache.aclose()


HUNG: dict[str, Callable[[FolderStore], Any]] = {
    "get": lambda store: store.get(name(1)),
    "head": lambda store: store.head(name(1), 10),
    "contains": lambda store: store.contains(name(1)),
    "touch": lambda store: store.touch(name(1)),
    "delete": lambda store: store.delete(name(1)),
    "put": lambda store: store.put(name(2), b"data"),
    "names": lambda store: anext(store.names()),
    "marker": lambda store: store.marker(),
}


@pytest.mark.parametrize("call", HUNG.values(), ids=HUNG.keys())
async def test_every_call_on_a_disk_that_hangs_ends(tmp_path: Path, monkeypatch: Any, call: Any) -> None:
    """Whatever is asked of a file system that does not answer is a TierError within the time."""
    store, answer = FolderStore(tmp_path, timeout=TIMEOUT), threading.Event()
    for part in ("read", "head", "exists", "shards", "marker", "set_up"):
        monkeypatch.setattr(store.files, part, lambda *_: answer.wait(60))
    began = time.monotonic()
    with pytest.raises(TierError, match="l3_timeout_seconds"):
        await call(store)
    assert time.monotonic() - began < LONG
    answer.set()


async def test_a_hanging_disk_opens_the_breaker_and_leaves_other_threads(
    tmp_path: Path, monkeypatch: Any, recorder: Any
) -> None:
    """Reads that hang are errors, then not asked at all, and no thread of anybody else is taken."""
    store, answer = FolderStore(tmp_path, timeout=TIMEOUT), threading.Event()
    cache = TieredCache("video", secret=SECRET, l3=store, telemetry=recorder)
    monkeypatch.setattr(store.files, "read", lambda *_: answer.wait(60))
    await asyncio.gather(*(cache.get(f"{number:064x}") for number in range(50)))
    assert set(recorder.results(TierRead, "l3")) == {"error"}
    assert cache.stats()["l3"]["breaker"] == "open"
    async with asyncio.timeout(LONG):
        assert await asyncio.to_thread(lambda: "free") == "free"
    answer.set()


async def test_a_writer_that_hangs_while_it_opens_the_index(tmp_path: Path) -> None:
    """The lock under which an index is opened or replaced is waited for no longer than the rest."""
    with (tmp_path / "index.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        store = FolderStore(tmp_path, timeout=TIMEOUT)
        async with asyncio.timeout(LONG):
            with pytest.raises(TierRefused):
                await store.put(name(1), b"data")


GONE: dict[str, Callable[[Path], Any]] = {
    "the folder": shutil.rmtree,
    "its objects": lambda folder: shutil.rmtree(folder / "objects"),
    "its temporary files": lambda folder: shutil.rmtree(folder / "tmp"),
    "its index": lambda folder: [path.unlink() for path in folder.glob("index.sqlite*")],
    "its marker": lambda folder: (folder / MARKER).unlink(),
    "a shard": lambda folder: shutil.rmtree(folder / "objects" / "00"),
}


@pytest.mark.parametrize("remove", GONE.values(), ids=GONE.keys())
async def test_what_is_gone_is_made_again(tmp_path: Path, remove: Callable[[Path], Any]) -> None:
    """Reads miss what was lost; the next write finds everything set up as at the start, and its value is kept."""
    folder = tmp_path / "l3"
    store = FolderStore(folder, secret=SECRET, max_bytes=1_000_000)
    for number in range(1, 4):
        await store.put(name(number), b"data")
    remove(folder)
    assert await store.get(name(1)) in (None, b"data")
    assert len([each async for each in store.names()]) in (0, 3)
    assert await store.put(name(4), b"more") == b"more"
    assert await store.get(name(4)) == b"more"
    assert (folder / MARKER).read_bytes() == marker_of(SECRET)
    assert store.index.frequency(name(4)) == 1
    differences = store.index.differences()
    assert (differences.unlisted, differences.resized) == ((), ())
    await store.aclose()
    with FolderStore(folder, secret=SECRET).index._turn():
        assert {path.name for path in folder.iterdir()} >= {"objects", "tmp", MARKER, "index.sqlite"}


async def test_a_folder_that_became_somebody_elses(tmp_path: Path) -> None:
    """Swapped for another deployment's while the server ran: nothing is written into it."""
    folder = tmp_path / "l3"
    store = FolderStore(folder, secret=SECRET)
    await store.put(name(1), b"data")
    folder.rename(tmp_path / "away")
    theirs = FolderStore(folder, secret=b"another secret")
    await theirs.put(name(2), b"theirs")
    with pytest.raises(TierError, match="another secret"):
        await store.put(name(3), b"ours")
    assert [each async for each in theirs.names()] == [name(2)]
    await theirs.aclose()


def test_new_folders_are_synced_into_the_one_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the value up to what was there before: after a power cut the way to a stored value exists."""
    synced: list[str] = []
    paths: dict[int, str] = {}
    real_open, real_sync = os.open, os.fsync

    def opened(path: Any, *arguments: Any, **named: Any) -> int:
        descriptor = real_open(path, *arguments, **named)
        paths[descriptor] = str(path)
        return descriptor

    def sync(descriptor: int) -> None:
        synced.append(paths.get(descriptor, ""))
        real_sync(descriptor)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", sync)
    root = tmp_path / "a" / "b" / "l3"
    files = FolderFiles(root)
    with files.written(b"data") as temporary:
        files.link(temporary, "12" * 32)
    value = files.path("12" * 32)
    above = [tmp_path, tmp_path / "a", tmp_path / "a" / "b", root, root / "objects", value.parents[1], value.parent]
    assert {str(each) for each in above} <= set(synced)
    before = len(synced)
    with files.written(b"more") as temporary:
        files.link(temporary, "12" * 31 + "34")
    assert len(synced) - before == 2  # the file and its folder: what is known to be synced is not synced again
    other = FolderFiles(root)  # one that did not make the folders cannot know that their maker lived to sync them
    before = len(synced)
    with other.written(b"more") as temporary:
        other.link(temporary, "12" * 31 + "56")
    assert {str(value.parents[1]), str(root / "objects")} <= set(synced[before:])


async def test_an_index_of_another_program_is_moved_not_removed(tmp_path: Path) -> None:
    """A file called index.sqlite that is none of ours is found in the quarantine afterwards."""
    with sqlite3.connect(tmp_path / "index.sqlite") as connection:
        connection.execute("CREATE TABLE letters (text TEXT)")
        connection.execute("INSERT INTO letters VALUES ('dear')")
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    store = FolderStore(tmp_path)
    await store.put(name(1), b"data")
    await store.aclose()
    [moved] = (tmp_path / "quarantine").rglob("index.sqlite")
    with sqlite3.connect(moved) as connection:
        assert connection.execute("SELECT text FROM letters").fetchall() == [("dear",)]
    connection.close()
