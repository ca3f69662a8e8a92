"""What any tier must do, alone or under the walk: one suite over memory, Valkey, folder, S3 and their combinations."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from serve_app.cache.cache import TieredCache
from serve_app.cache.memory import MemoryTier
from serve_app.cache.objects.folder import FolderStore
from serve_app.cache.redis.redis import RedisTier
from serve_app.cache.remote_tier import RemoteTier
from serve_app.cache.store import AiocacheStore
from serve_app.core import Entry

KEY = "1f" * 32


class Subject(Protocol):
    """The few verbs of the contract."""

    write_once: bool

    async def write(self, entry: Entry) -> Entry | None: ...
    async def read(self, key: str) -> Entry | None: ...
    async def delete(self, key: str) -> bool: ...
    async def contains(self, key: str) -> bool: ...
    async def aclose(self) -> None: ...


class Memory:
    """MemoryTier through aiocache's public methods."""

    write_once = False

    def __init__(self) -> None:
        self._tier = MemoryTier(64 << 20)

    async def write(self, entry: Entry) -> Entry | None:
        return entry if await self._tier.set(entry.key, entry) else None

    async def read(self, key: str) -> Entry | None:
        return await self._tier.get(key)

    async def delete(self, key: str) -> bool:
        return bool(await self._tier.delete(key))

    async def contains(self, key: str) -> bool:
        return await self._tier.exists(key)

    async def aclose(self) -> None:
        await self._tier.close()


class Remote:
    """A shared tier through RemoteTier, as the walk uses it."""

    def __init__(self, tier: str, store: Any, telemetry: Any) -> None:
        self.write_once = tier == "l3"
        self._tier = RemoteTier(tier, "video", store, secret=b"secret", telemetry=telemetry)
        self.write, self.read = self._tier.write, self._tier.read
        self.delete, self.contains, self.aclose = self._tier.delete, self._tier.contains, self._tier.aclose


class Tiered:
    """The whole walk over whichever tiers there are."""

    def __init__(self, telemetry: Any, **tiers: Any) -> None:
        self.write_once = tiers.get("l3") is not None
        self.cache = TieredCache("video", secret=b"secret", telemetry=telemetry, **tiers)
        self.aclose = self.cache.aclose

    async def write(self, entry: Entry) -> Entry | None:
        return (await self.cache.put(entry)).entry

    async def read(self, key: str) -> Entry | None:
        found = await self.cache.get(key)
        return found[0] if found else None

    async def delete(self, key: str) -> bool:
        return bool(await self.cache.delete(key))

    async def contains(self, key: str) -> bool:
        return any((await self.cache.where(key)).values())


@pytest.fixture(
    params=["l1", "l2", "folder", "s3", "walk:l1", "walk:l1+l2", "walk:l2+folder", "walk:l1+l2+folder", "walk:l1+l2+s3"]
)
async def subject(request: pytest.FixtureRequest, tmp_path: Path, recorder: Any) -> AsyncIterator[Subject]:
    """Every tier and combination in turn; servers are started only for those that need them."""

    def tier(name: str) -> Any:
        if name == "l1":
            return MemoryTier(64 << 20)
        if name == "l2":
            return RedisTier(request.getfixturevalue("valkey_url"))
        if name == "folder":
            return FolderStore(tmp_path)
        return request.getfixturevalue("s3_store")()

    made: Subject
    kind, _, names = request.param.rpartition(":")
    if kind:
        levels = {"folder": "l3", "s3": "l3"}
        made = Tiered(recorder, **{levels.get(name, name): tier(name) for name in names.split("+")})
    elif names == "l1":
        made = Memory()
    elif names == "l2":
        made = Remote("l2", AiocacheStore(tier("l2")), recorder)
    else:
        made = Remote("l3", tier(names), recorder)
    yield made
    await made.aclose()


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", bytes(range(256)) * 5, b"\r\n$-1\r\n", os.urandom(5 << 20)],
    ids=["empty", "zero", "all bytes", "protocol", "5 MB"],
)
async def test_what_is_written_is_read(subject: Subject, data: bytes) -> None:
    """Any bytes come back equal, binary-safe, with digest and metadata."""
    entry = Entry.of(KEY, data, {"seconds": 1.5, "steps": 20, "codec": "h264", "text": "größe\n", "nothing": None})
    assert await subject.write(entry) == entry
    assert await subject.read(KEY) == entry


async def test_an_unknown_key_is_a_miss(subject: Subject) -> None:
    """What was never stored is neither found nor contained, and deleting it removes nothing."""
    assert await subject.read(KEY) is None
    assert await subject.contains(KEY) is False
    assert await subject.delete(KEY) is False


@pytest.mark.parametrize(
    "key",
    ["", "../../etc/passwd", "a\r\nFLUSHALL\r\n", "schlüssel", "k" * 5000],
    ids=["empty", "path", "protocol", "unicode", "long"],
)
async def test_any_string_is_a_key(subject: Subject, key: str) -> None:
    """Keys may be any string a client sends; none of them can escape or break a tier."""
    entry = Entry.of(key, b"data")
    assert await subject.read(key) is None
    assert await subject.write(entry) == entry
    assert await subject.read(key) == entry


async def test_delete_removes(subject: Subject) -> None:
    """A deleted value is gone, and its neighbour stays."""
    other = Entry.of("2e" * 32, b"other")
    await subject.write(Entry.of(KEY, b"data"))
    await subject.write(other)
    assert await subject.contains(KEY) is True
    assert await subject.delete(KEY) is True
    assert await subject.contains(KEY) is False
    assert await subject.read(KEY) is None
    assert await subject.read(other.key) == other


async def test_who_wins_when_a_key_is_written_twice(subject: Subject) -> None:
    """A write-once tier keeps the first value and hands it to the second writer; others take the latest."""
    first, second = Entry.of(KEY, b"first", {"n": 1}), Entry.of(KEY, b"second", {"n": 2})
    await subject.write(first)
    expected = first if subject.write_once else second
    assert await subject.write(second) == expected
    assert await subject.read(KEY) == expected


async def test_a_deleted_key_can_be_written_anew(subject: Subject) -> None:
    """Write-once lasts until the deletion."""
    await subject.write(Entry.of(KEY, b"first"))
    await subject.delete(KEY)
    second = Entry.of(KEY, b"second")
    assert await subject.write(second) == second
    assert await subject.read(KEY) == second


async def test_many_keys_at_once(subject: Subject) -> None:
    """Concurrent writes and reads of different keys do not mix."""
    entries = [Entry.of(f"{n:064x}", os.urandom(1000 + n)) for n in range(40)]
    assert await asyncio.gather(*(subject.write(entry) for entry in entries)) == entries
    assert await asyncio.gather(*(subject.read(entry.key) for entry in entries)) == entries


async def test_many_writers_of_one_key(subject: Subject) -> None:
    """Whoever writes concurrently, one whole value remains; in a write-once tier every writer is told that one."""
    entries = [Entry.of(KEY, bytes([n]) * 50_000) for n in range(8)]
    told = await asyncio.gather(*(subject.write(entry) for entry in entries))
    kept = await subject.read(KEY)
    assert kept in entries
    if subject.write_once:
        assert told == [kept] * 8
