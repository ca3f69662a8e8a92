"""L3 in a folder: whole or not there, first writer wins, within its bound, also with several processes and kill -9."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from serve_app.cache.objects.folder import FolderStore
from serve_app.cache.objects.folder_rows import Gone
from serve_app.core import Entry
from serve_app.errors import TierError
from serve_app.telemetry import Evicted
from tests.serve_app.cache.frames import framed


def name(number: int) -> str:
    return f"{number:064x}"


def files(folder: Path) -> list[Path]:
    return [path for path in (folder / "objects").rglob("*") if path.is_file()]


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


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


KILLED = """
import asyncio, json, os, random, signal, sys, time
from pathlib import Path
from serve_app.cache.envelope import Envelope
from serve_app.cache.objects.folder import FolderStore
from serve_app.cache.storage_name import storage_name
from serve_app.core import Entry

ROOT, BOUND = Path(sys.argv[1]), 2_000_000
KEYS = [f"{number:064x}" for number in range(60)]

async def write(seed):
    rng, store = random.Random(seed), FolderStore(ROOT, max_bytes=BOUND)
    while True:
        key = rng.choice(KEYS)
        name = storage_name(b"s", "video", key)
        entry = Entry.of(key, rng.randbytes(rng.randrange(200_000)), {"cost_seconds": rng.random()})
        do = rng.choice((store.put, store.put, lambda name, _: store.delete(name)))
        await do(name, Envelope(b"s").pack(name, entry))

def check(names):
    store = FolderStore(ROOT, max_bytes=BOUND)
    seen = {path.name: path.read_bytes() for path in (ROOT / "objects").glob("*/*/*")}
    for name, frame in seen.items():
        Envelope(b"s").unpack(name, names[name], frame)
    total = sum(map(len, seen.values()))
    assert total <= BOUND, total
    assert store.index.size() == (len(seen), total), (store.index.size(), len(seen), total)
    assert not store.index.differences()
    assert not list((ROOT / "tmp").iterdir())
    store.index.close()
    return len(seen)

FolderStore(ROOT)
names, rng = {storage_name(b"s", "video", key): key for key in KEYS}, random.Random(7)
leftovers = disagreed = kept = 0
for round_ in range(40):
    writers = []
    for seed in (2 * round_, 2 * round_ + 1):
        writers.append(os.fork())
        if not writers[-1]:
            asyncio.run(write(seed))
    time.sleep(0.02 + rng.random() / 10)
    for writer in writers:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    leftovers += len(list((ROOT / "tmp").iterdir()))
    kept = max(kept, check(names))
print(json.dumps([leftovers, kept]))
"""


def test_killed_writers_leave_nothing_half_visible(tmp_path: Path) -> None:
    """Two writing processes die 40 times at any moment of a write, a deletion or an eviction, and all is well after.

    Every visible file is whole and under its own name, together they are within the bound, the next start sweeps the
    rest, and its index agrees with the files.
    """
    told = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    leftovers, kept = json.loads(told.stdout)
    assert leftovers, "no writer was killed in the middle of a write; the test proves nothing"
    assert kept > 5


CROWD = """
import asyncio, os, random, sys
from pathlib import Path
from serve_app.cache.objects.folder import FolderStore

ROOT, BOUND = Path(sys.argv[1]), 100_000

async def write(seed):
    rng, store = random.Random(seed), FolderStore(ROOT, max_bytes=BOUND)
    for number in range(150):
        await store.put(f"{rng.randrange(400):064x}", bytes(rng.randrange(10_000)))
        if number % 10 == 0:
            store.index._write(lambda book: check(book.state.bytes))
    await store.aclose()

def check(told):
    total = sum(path.stat().st_size for path in (ROOT / "objects").glob("*/*/*"))
    assert total <= told <= BOUND, (total, told)

writers = []
for seed in range(4):
    writers.append(os.fork())
    if not writers[-1]:
        try:
            asyncio.run(write(seed))
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
sys.exit(max(os.waitpid(writer, 0)[1] >> 8 for writer in writers))
"""


def test_processes_keep_one_bound(tmp_path: Path) -> None:
    """Four processes write at once; whenever the writers are held still, the files are within the bound to the byte."""
    told = subprocess.run([sys.executable, "-c", CROWD, str(tmp_path)], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert sum(path.stat().st_size for path in files(tmp_path)) > 80_000


async def test_a_start_leaves_writes_in_progress_alone(tmp_path: Path) -> None:
    """The sweep takes what nobody holds, and spares the file of a writer that is alive and what is not ours."""
    store = FolderStore(tmp_path)
    (tmp_path / "tmp" / "encore-leftover").write_bytes(b"half")
    (tmp_path / "tmp" / "tmp12345678").write_bytes(b"another program's")
    (tmp_path / "tmp" / "encore-folder").mkdir()
    with store.files.written(b"in progress") as temporary:
        FolderStore(tmp_path)
        left = {path.name for path in (tmp_path / "tmp").iterdir()}
        assert left == {Path(temporary).name, "tmp12345678", "encore-folder"}


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
    """A folder that became a file, or is one, is a TierError, not an OSError."""
    store = FolderStore(tmp_path / "cache")
    (tmp_path / "cache" / "tmp").rmdir()
    (tmp_path / "cache" / "tmp").write_bytes(b"")
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


async def test_what_saves_more_seconds_per_byte_stays(tmp_path: Path) -> None:
    """The frame's own header tells its cost: a dear video outlives cheap ones, large and small."""
    store = FolderStore(tmp_path, max_bytes=40_000)
    costs = {1: 30.0, 2: 0.1, 3: 0.2, 4: 25.0}
    for number, cost in costs.items():
        await store.put(
            name(number), framed(Entry.of("k", bytes(9000), {"render_seconds": cost, "encode_seconds": 0.0}))
        )
    await store.put(name(5), framed(Entry.of("k", bytes(18_000), {"cost_seconds": 50.0})))
    assert [await store.contains(name(number)) for number in range(1, 6)] == [True, False, False, True, True]


async def test_reads_write_nothing(tmp_path: Path) -> None:
    """Reads gather their counts in memory; the next write tells them, and so does closing."""
    store = FolderStore(tmp_path, max_bytes=10_000)
    await store.put(name(1), bytes(100))
    before = times(tmp_path)
    for _ in range(5):
        await store.get(name(1))
    assert times(tmp_path) == before
    assert store.index.frequency(name(1)) == 1
    await store.put(name(2), bytes(100))
    assert store.index.frequency(name(1)) == 6
    await store.get(name(1))
    await store.aclose()
    assert FolderStore(tmp_path).index.frequency(name(1)) == 7


async def test_uses_are_told_every_few_seconds(tmp_path: Path, clock) -> None:
    """A store that only reads tells the index in the background, so that those who write evict by what is used."""
    store = FolderStore(tmp_path, clock=clock)
    await store.put(name(1), bytes(100))
    await store.get(name(1))
    assert store.index.frequency(name(1)) == 1
    clock.advance(6)
    await store.get(name(1))
    await store._flushing
    assert store.index.frequency(name(1)) == 3


async def test_a_failed_write_forgets_no_use(tmp_path: Path, monkeypatch) -> None:
    """Counts that travel with a write come back when it fails."""
    store = FolderStore(tmp_path)
    await store.put(name(1), bytes(100))
    await store.get(name(1))
    monkeypatch.setattr(store.files, "link", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await store.put(name(2), bytes(100))
    await store.aclose()
    assert store.index.frequency(name(1)) == 2


async def test_an_index_that_cannot_be_written_is_a_tier_error(tmp_path: Path) -> None:
    """A value that could not be kept within the bound is not stored."""
    store = FolderStore(tmp_path, max_bytes=1000)
    (tmp_path / "index.sqlite").mkdir()
    with pytest.raises(TierError):
        await store.put(name(1), b"data")
    assert files(tmp_path) == []


async def test_a_head_is_no_use(tmp_path: Path) -> None:
    """The first bytes come alone, and who looks at all headers makes nothing look wanted."""
    store = FolderStore(tmp_path)
    await store.put(name(1), bytes(range(100)))
    assert await store.head(name(1), 10) == bytes(range(10))
    assert await store.head(name(2), 10) is None
    await store.aclose()
    assert store.index.frequency(name(1)) == 1
