"""A shared tier that is broken, lies or is slow: a miss, an event and a span, never an exception."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from serve_app.cache.circuit import Circuit
from serve_app.cache.envelope import Envelope
from serve_app.cache.objects.folder import FolderStore
from serve_app.cache.remote_tier import RemoteTier
from serve_app.cache.storage_name import storage_name
from serve_app.core import Entry
from serve_app.errors import TierError
from serve_app.telemetry import TierRead, TierWritten
from tests.serve_app.cache.frames import framed

KEY = "1f" * 32
ENTRY = Entry.of(KEY, b"data", {"steps": 4})
CLOSED = {"breaker": "closed", "store_breaker": "closed"}
NAME = storage_name(b"secret", "video", KEY)


class Fragile:
    """A folder store whose calls fail while `broken` is set; counts the calls that reach it."""

    def __init__(self, folder: Path) -> None:
        self._store = FolderStore(folder)
        self.broken: Exception | None = None
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*args: Any) -> Any:
            self.calls += 1
            if self.broken:
                raise self.broken
            return await method(*args)

        return call


@pytest.fixture
def store(tmp_path: Path) -> Fragile:
    return Fragile(tmp_path)


@pytest.fixture
def tier(store: Fragile, recorder, clock) -> RemoteTier:
    circuit = Circuit("l3", failures=3, retry_after=5, clock=clock)
    return RemoteTier("l3", "video", store, secret=b"secret", telemetry=recorder, circuit=circuit)


async def test_events_tell_results_and_bytes(tier: RemoteTier, recorder) -> None:
    """Miss, store, hit and a second write each are one event with tier, kind and size."""
    await tier.read(KEY)
    await tier.write(ENTRY)
    await tier.read(KEY)
    await tier.write(Entry.of(KEY, b"other"))
    seen = [(type(e), e.tier, e.kind, e.result, e.bytes) for e in recorder.events]
    assert seen == [
        (TierRead, "l3", "video", "miss", 0),
        (TierWritten, "l3", "video", "stored", 4),
        (TierRead, "l3", "video", "hit", 4),
        (TierWritten, "l3", "video", "exists", 5),
    ]
    assert tier.stats() == {"miss": 1, "write_stored": 1, "hit": 1, "write_exists": 1} | CLOSED


@pytest.mark.parametrize("error", [TierError("down"), OSError("down"), TypeError("a bug in a backend")], ids=repr)
async def test_a_broken_store_never_raises(tier: RemoteTier, store: Fragile, recorder, error: Exception) -> None:
    """Whatever the store raises is a miss or a None, and is counted."""
    store.broken = error
    assert await tier.read(KEY) is None
    assert await tier.write(ENTRY) is None
    assert await tier.contains(KEY) is None
    assert await tier.delete(KEY) is None
    await tier.touch(KEY)
    await tier.aclose()
    assert (recorder.results(TierRead, "l3"), recorder.results(TierWritten, "l3")) == (["error"], ["error"])


async def test_an_open_breaker_spares_the_store(tier: RemoteTier, store: Fragile, recorder, clock) -> None:
    """After three failures nothing is attempted, each read still is an error event; later one trial heals it."""
    await tier.write(ENTRY)
    store.broken, store.calls = TierError("down"), 0
    for _ in range(10):
        assert await tier.read(KEY) is None
    assert store.calls == 3
    assert recorder.results(TierRead, "l3") == ["error"] * 10
    store.broken = None
    clock.advance(5)
    assert await tier.read(KEY) == ENTRY
    assert tier.stats()["breaker"] == "closed"


async def corrupt(tmp_path: Path) -> None:
    path = tmp_path / "objects" / NAME[:2] / NAME[2:4] / NAME
    frame = bytearray(path.read_bytes())
    frame[-1] ^= 1
    path.write_bytes(frame)


async def test_a_corrupt_value_is_deleted_and_a_miss(tier: RemoteTier, tmp_path: Path, recorder) -> None:
    """A bit flipped on disk: counted as corrupt, gone afterwards, and the next write takes its place."""
    await tier.write(ENTRY)
    await corrupt(tmp_path)
    assert await tier.read(KEY) is None
    assert recorder.results(TierRead, "l3") == ["corrupt"]
    assert await tier.contains(KEY) is False
    assert await tier.write(ENTRY) == ENTRY
    assert await tier.read(KEY) == ENTRY


async def test_a_corrupt_value_is_not_adopted(tier: RemoteTier, tmp_path: Path, recorder) -> None:
    """A writer that finds a corrupt earlier value replaces it instead of serving it."""
    await tier.write(ENTRY)
    await corrupt(tmp_path)
    fresh = Entry.of(KEY, b"fresh")
    assert await tier.write(fresh) == fresh
    assert await tier.read(KEY) == fresh
    assert recorder.results(TierWritten, "l3") == ["stored", "stored"]


async def test_a_swapped_object_is_a_miss(tier: RemoteTier, store: Fragile, recorder) -> None:
    """Another key's whole value under this name does not pass for this one."""
    await store.put(NAME, framed(Entry.of("2e" * 32, b"somebody else's video"), secret=b"secret"))
    assert await tier.read(KEY) is None
    assert recorder.results(TierRead, "l3") == ["corrupt"]


async def test_a_cancelled_read_is_cancelled(tier: RemoteTier, store: Fragile) -> None:
    """Cancellation passes through and is not taken for a failure of the tier."""
    store.broken = asyncio.CancelledError()  # type: ignore[assignment]
    for _ in range(5):
        with pytest.raises(asyncio.CancelledError):
            await tier.read(KEY)
    assert tier.stats()["breaker"] == "closed"


@pytest.mark.parametrize(("size", "on_the_loop"), [(1000, True), (3_000_000, False)])
async def test_large_values_are_checked_off_the_loop(
    tier: RemoteTier, monkeypatch, size: int, on_the_loop: bool
) -> None:
    """Hashing megabytes runs in a thread and does not hold the event loop; small values are not worth the hop."""
    threads, unpack = [], Envelope.unpack

    def watched(self: Envelope, name: str, key: str, frame: bytes) -> Entry:
        threads.append(threading.current_thread())
        return unpack(self, name, key, frame)

    monkeypatch.setattr(Envelope, "unpack", watched)
    entry = Entry.of(KEY, bytes(size))
    await tier.write(entry)
    assert await tier.read(KEY) == entry
    assert [thread is threading.current_thread() for thread in threads] == [on_the_loop]
