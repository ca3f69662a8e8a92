"""L3 in a folder: whole or not there, first writer wins, within its bound, also with several processes and kill -9."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from serve_app.cache.folder import FolderStore
from serve_app.cache.folder_index import Gone
from serve_app.errors import TierError
from serve_app.telemetry import Evicted


def name(number: int) -> str:
    return f"{number:064x}"


def files(folder: Path) -> list[Path]:
    return [path for path in (folder / "objects").rglob("*") if path.is_file()]


async def test_layout(tmp_path: Path) -> None:
    """A value lies two shards deep under its storage name, only for the owner's eyes, and no temporary file stays."""
    await FolderStore(tmp_path).put("ab" * 32, b"data")
    path = tmp_path / "objects" / "ab" / "ab" / ("ab" * 32)
    assert path.read_bytes() == b"data"
    assert path.stat().st_mode & 0o077 == 0
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("call", ["get", "delete", "contains", "touch"])
async def test_nothing_but_a_storage_name_becomes_a_path(tmp_path: Path, call: str) -> None:
    """A path as a name is refused before the file system hears of it."""
    with pytest.raises(ValueError, match="storage name"):
        await getattr(FolderStore(tmp_path), call)("../../etc/passwd")


async def test_names_are_all_that_is_stored(tmp_path: Path) -> None:
    """Every stored name comes once, and no leftover, stray file or file in a wrong shard does."""
    store = FolderStore(tmp_path)
    stored = {f"{number:02x}" * 32 for number in range(40)} | {name(1), name(2)}
    for each in stored:
        await store.put(each, b"data")
    (tmp_path / "tmp" / "leftover").write_bytes(b"")
    (tmp_path / "objects" / "stray").write_bytes(b"")
    (tmp_path / "objects" / "00" / "stray").write_bytes(b"")
    (tmp_path / "objects" / "00" / "00" / ("ab" * 32)).write_bytes(b"")
    assert sorted([each async for each in store.names()]) == sorted(stored)


async def test_the_first_writer_wins_across_stores(tmp_path: Path) -> None:
    """Two stores on one folder (two processes in life) agree on the first bytes."""
    first, second = FolderStore(tmp_path), FolderStore(tmp_path)
    data = b"first"
    assert await first.put(name(1), data) is data
    assert await second.put(name(1), b"second") == b"first"


def test_racing_writers_agree(tmp_path: Path) -> None:
    """Threads that link at the same moment all come back with the same bytes."""
    store = FolderStore(tmp_path)
    for round_ in range(20):
        barrier, held = threading.Barrier(6), []

        def write(data: bytes, barrier=barrier, held=held, round_=round_) -> None:
            barrier.wait()
            held.append(store._put(name(round_), data, Counter())[0])

        threads = [threading.Thread(target=write, args=(bytes([n]) * 10_000,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(held)) == 1


WRITER = """
import asyncio, sys
from pathlib import Path
from serve_app.cache.folder import FolderStore
from serve_app.cache.folder_index import Gone
async def main():
    store = FolderStore(Path(sys.argv[1]))
    for number in range(10**6):
        await store.put(f"{number:064x}", bytes(3_000_000))
        if number == 2:
            print("writing", flush=True)
asyncio.run(main())
"""


def test_a_killed_writer_leaves_nothing_half_visible(tmp_path: Path) -> None:
    """After SIGKILL in the middle of writing every visible file is whole, and the next start sweeps the rest."""
    left_behind = 0
    for attempt in range(4):
        folder = tmp_path / str(attempt)
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE)
        with writer:
            assert writer.stdout.readline() == b"writing\n"
            time.sleep(0.003 * attempt)
            writer.send_signal(signal.SIGKILL)
        assert len(files(folder)) >= 3
        assert {path.stat().st_size for path in files(folder)} == {3_000_000}
        left_behind += len(list((folder / "tmp").iterdir()))
        FolderStore(folder)
        assert list((folder / "tmp").iterdir()) == []
    assert left_behind, "no attempt hit a write in progress; the test proves nothing"


async def test_a_start_leaves_writes_in_progress_alone(tmp_path: Path) -> None:
    """The sweep takes what nobody holds and spares the file of a writer that is alive."""
    store = FolderStore(tmp_path)
    (tmp_path / "tmp" / "leftover").write_bytes(b"half")
    with store.files.written(b"in progress") as temporary:
        FolderStore(tmp_path)
        assert [path.name for path in (tmp_path / "tmp").iterdir()] == [Path(temporary).name]


async def test_the_bound_holds(tmp_path: Path, recorder) -> None:
    """After every single write the folder is within its bound, what goes is told, and the last value is there."""
    store = FolderStore(tmp_path, max_bytes=10_000, telemetry=recorder)
    for number in range(60):
        await store.put(name(number), bytes(100 * (number % 9 + 1)))
        assert sum(path.stat().st_size for path in files(tmp_path)) <= 10_000
        assert await store.contains(name(number))
    evicted = [event for event in recorder.events if isinstance(event, Evicted)]
    assert sum(event.count for event in evicted) == 60 - len(files(tmp_path)) > 0


@pytest.mark.parametrize("use", ["get", "touch"])
async def test_what_was_used_stays(tmp_path: Path, use: str) -> None:
    """Of equal values the one used longest ago goes first; reading and touching both count as use."""
    store = FolderStore(tmp_path, max_bytes=4000)
    for number in range(3):
        await store.put(name(number), bytes(1000))
    await getattr(store, use)(name(0))
    await store.put(name(3), bytes(1000))
    await store.put(name(4), bytes(1000))
    assert [await store.contains(name(n)) for n in range(5)] == [True, False, True, True, True]


async def test_a_bound_counts_what_was_there_before(tmp_path: Path) -> None:
    """A store opened with a smaller bound makes room at its first write."""
    for number in range(20):
        await FolderStore(tmp_path).put(name(number), bytes(1000))
    await FolderStore(tmp_path, max_bytes=5000).put(name(99), bytes(1000))
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 5000


async def test_a_value_beyond_the_bound_is_refused(tmp_path: Path) -> None:
    """It would empty the folder for nothing."""
    store = FolderStore(tmp_path, max_bytes=1000)
    assert await store.put(name(1), bytes(1001)) is None
    assert files(tmp_path) == []


async def test_two_stores_keep_one_bound(tmp_path: Path) -> None:
    """Two stores on one folder are within the bound together after every write of either."""
    stores = [FolderStore(tmp_path, max_bytes=20_000) for _ in range(2)]
    for number in range(100):
        await stores[number % 2].put(name(number), bytes(500))
        assert sum(path.stat().st_size for path in files(tmp_path)) <= 20_000
    assert len(files(tmp_path)) == 40


async def test_file_system_errors_are_tier_errors(tmp_path: Path) -> None:
    """A folder that vanished or is no folder is a TierError, not an OSError."""
    store = FolderStore(tmp_path / "cache")
    (tmp_path / "cache" / "tmp").rmdir()
    with pytest.raises(TierError):
        await store.put(name(1), b"data")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TierError):
        FolderStore(tmp_path / "file")


async def test_the_event_loop_stays_free(tmp_path: Path, monkeypatch) -> None:
    """File work runs in a thread: a write that only the event loop can release does get released."""
    store, release = FolderStore(tmp_path), threading.Event()
    monkeypatch.setattr(store, "_put", lambda name, data, uses: (data if release.wait(5) else None, Gone()))
    asyncio.get_running_loop().call_later(0.01, release.set)
    assert await store.put(name(1), b"data") == b"data"
