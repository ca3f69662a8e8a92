"""What invalidations cover is deleted behind the answer, in a real Valkey and a folder; then rules are retired."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.cache.envelope import Envelope, Incomplete
from serve_app.cache.invalidation.object_rules import ObjectRules
from serve_app.cache.invalidation.redis_rules import RedisRules
from serve_app.cache.invalidation.rules import Labels, RuleBook, SharedClock, provenance
from serve_app.cache.invalidation.sweep import ObjectShelf, RedisShelf, RuleSweeper
from serve_app.cache.invalidation.sync import KEPT_SECONDS, RuleSync
from serve_app.cache.objects.folder import FolderStore
from serve_app.cache.redis.redis import RedisTier
from serve_app.cache.storage_name import redis_name, storage_name
from serve_app.core import Entry
from serve_app.errors import CorruptEntry, TierError
from tests.serve_app.cache.frames import framed

SECRET = b"a test's secret"
LABELS = Labels(SECRET)
NOW = 1_800_000_000.0


class Shop:
    """One process: tiers, sync and sweeper; its time stands still unless moved."""

    def __init__(self, url: str, folder: Path, now: list[float]) -> None:
        self.now = now
        self.redis = RedisTier(url)
        self.l3 = FolderStore(folder)
        clock = SharedClock(wall=lambda: now[0], monotonic=lambda: now[0])
        rules = RedisRules(self.redis, secret=SECRET, clock=lambda: now[0])
        self.sync = RuleSync(
            RuleBook(LABELS, clock=clock), rules, ObjectRules(self.l3, secret=SECRET), poll_seconds=3600.0,
            monotonic=lambda: now[0],
        )  # fmt: skip
        self.sweeper = RuleSweeper(
            self.sync, [RedisShelf(self.redis, secret=SECRET), ObjectShelf(self.l3, secret=SECRET)]
        )

    async def store(self, key: str, tag: str, *, kind: Any = "video", meta: Any = None) -> str:
        """Put a value into both tiers; return its name."""
        told = provenance(round(self.now[0] * 1e6) - 1, [LABELS.of("tag", tag)]) | (meta or {})
        frame, name = framed(Entry.of(key, b"v" * 9000, told), kind, SECRET), storage_name(SECRET, kind, key)
        await self.redis.set(redis_name(name), frame)
        await self.l3.put(name, frame)
        return name

    async def held(self, name: str) -> tuple[bool, bool]:
        return await self.redis.exists(redis_name(name)), await self.l3.contains(name)

    async def aclose(self) -> None:
        await self.sweeper.aclose()
        await self.sync.aclose()
        await self.redis.client.aclose()


@pytest.fixture
async def shop(valkey_url: str, tmp_path: Path) -> AsyncIterator[Shop]:
    made = Shop(valkey_url, tmp_path, [NOW])
    yield made
    await made.aclose()


async def test_all_kinds_of_covered_values_are_deleted_everywhere(shop: Shop) -> None:
    """After a sweep no tier has what a tag covers, latents and embeddings too, and everything else is there."""
    gone = [await shop.store(f"{n:064x}", "a", kind=kind) for n, kind in enumerate(("video", "latents", "embedding"))]
    stays = [await shop.store(f"{n:064x}", "b") for n in range(100, 140)]
    await shop.redis.client.set("somebody else's", b"value")
    await shop.sync.add("tag", [LABELS.of("tag", "a")])
    await shop.sweeper.round()
    assert [await shop.held(name) for name in gone] == [(False, False)] * 3
    assert [await shop.held(name) for name in stays] == [(True, True)] * 40
    stats = shop.sweeper.stats()
    assert (stats["deleted"], stats["sweeps"], stats["due"], stats["running"]) == (6, 1, 0, False)


async def test_single_keys_are_deleted_by_name(shop: Shop) -> None:
    """Rules of keys alone look at those names and at nothing else, however much is stored."""
    gone = await shop.store("a" * 64, "x")
    for n in range(20):
        await shop.store(f"{n:064x}", "x")
    await shop.sync.add("key", [LABELS.of("key", "a" * 64), LABELS.of("key", "b" * 64)])
    await shop.sweeper.round()
    assert await shop.held(gone) == (False, False)
    assert shop.sweeper.stats()["seen"] == 4


async def test_a_long_header_is_read_whole(shop: Shop) -> None:
    """Metadata beyond the first kilobytes costs a second look, and is judged as any other."""
    name = await shop.store("a" * 64, "a", meta={f"note {number}": "p" * 8_000 for number in range(5)})
    await shop.sync.add("tag", [LABELS.of("tag", "a")])
    await shop.sweeper.round()
    assert await shop.held(name) == (False, False)


async def test_a_rule_is_retired_after_a_day_and_a_last_sweep(shop: Shop) -> None:
    """A late write after the first sweep is deleted by the last one; only then is the rule forgotten, everywhere."""
    await shop.sync.add("tag", [LABELS.of("tag", "a")])
    await shop.sweeper.round()
    late = await shop.store("a" * 64, "a")
    shop.now[0] += KEPT_SECONDS - 1
    await shop.sweeper.round()
    assert len(shop.sync.book) == 1
    shop.now[0] += 2
    await shop.sweeper.round()
    assert await shop.held(late) == (False, False)
    await shop.sweeper.round()
    assert len(shop.sync.book) == 0
    assert (await shop.sync.redis.read("")).rules == ()  # type: ignore[union-attr]
    assert await ObjectRules(shop.l3, secret=SECRET).read() == frozenset()


async def test_an_interrupted_sweep_is_begun_anew(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that fails in the middle leaves the rule to be swept for; the next round does all of it."""
    names = [await shop.store(f"{n:064x}", "a") for n in range(40)]
    await shop.sync.add("tag", [LABELS.of("tag", "a")])
    delete, calls = FolderStore.delete, []

    async def failing(store: FolderStore, name: str) -> bool:
        calls.append(name)
        if len(calls) > 20:
            raise TierError("The disk is gone.")
        return await delete(store, name)

    monkeypatch.setattr(FolderStore, "delete", failing)
    with pytest.raises(TierError):
        await shop.sweeper.round()
    assert (shop.sweeper.stats()["due"], shop.sweeper.stats()["running"]) == (1, False)
    monkeypatch.undo()
    await shop.sweeper.round()
    assert [await shop.held(name) for name in names] == [(False, False)] * 40
    assert shop.sweeper.stats()["due"] == 0


async def test_one_process_sweeps_and_the_others_know(shop: Shop, valkey_url: str, tmp_path: Path) -> None:
    """While one has the place another leaves it alone; when that one is silent it finds nothing left to do."""
    other = Shop(valkey_url, tmp_path, shop.now)
    await shop.store("a" * 64, "a")
    await shop.sync.add("tag", [LABELS.of("tag", "a")])
    await other.sync.sync()
    await shop.sweeper.round()
    await other.sweeper.round()
    assert other.sweeper.stats()["sweeps"] == 0
    await shop.sweeper._lease.give_back()  # type: ignore[union-attr]
    await other.sweeper.round()
    assert (other.sweeper.stats()["sweeps"], other.sweeper.stats()["due"]) == (0, 0)
    await other.aclose()


def test_a_glance_needs_the_header_alone() -> None:
    """The first bytes give digest and metadata; too few say how many, a flipped bit is refused."""
    entry = Entry.of("a" * 64, b"v" * 100, {"begun_at": 7})
    frame, name, glance = (
        framed(entry, "video", SECRET),
        storage_name(SECRET, "video", entry.key),
        Envelope(SECRET).glance,
    )
    head = frame[:-100]
    seen = glance(name, head)
    assert (seen.digest, seen.meta, seen.data) == (entry.digest, entry.meta, b"")
    for cut in (10, 45, len(head) - 1):
        with pytest.raises(Incomplete) as incomplete:
            glance(name, frame[:cut])
        assert cut < incomplete.value.needed <= len(head)
    with pytest.raises(CorruptEntry):
        glance(name, head[:-1] + bytes([head[-1] ^ 1]))
    with pytest.raises(CorruptEntry):
        glance(name, b"not a frame at all, but long enough to be looked at as one is")
