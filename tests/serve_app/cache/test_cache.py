"""The walk: where values are found, copied up, adopted and deleted, and that no broken tier ever shows."""

from __future__ import annotations

import asyncio
import contextvars
import time
from pathlib import Path
from typing import Any

import pytest
from aiocache import SimpleMemoryCache

from serve_app.cache.cache import Stored, TieredCache
from serve_app.cache.invalidation.rules import Labels, RuleBook, provenance
from serve_app.cache.memory import MemoryTier
from serve_app.cache.objects.folder import FolderStore
from serve_app.cache.objects.s3 import S3Store
from serve_app.cache.redis.redis import WEEK, RedisTier
from serve_app.cache.storage_name import redis_name, storage_name
from serve_app.core import EVERYTHING, Entry, Outcome, Rule
from serve_app.telemetry import TierRead, TierWritten

KEY = "1f" * 32
ENTRY = Entry.of(KEY, b"video bytes", {"render_seconds": 12.5})
NAME = storage_name(b"secret", "video", KEY)
HOUR = 3600.0


class Replica:
    """One process's cache over shared tiers: a fresh L1, the same Valkey and folder."""

    def __init__(self, url: str, folder: Path, recorder: Any, clock: Any) -> None:
        self.l1 = MemoryTier(10 << 20)
        self.l2 = RedisTier(url)
        self.l3 = FolderStore(folder)
        self.cache = TieredCache(
            "video", secret=b"secret", l1=self.l1, l2=self.l2, l3=self.l3, telemetry=recorder, clock=clock
        )


@pytest.fixture
async def replica(valkey_url, tmp_path, recorder, clock):
    """A function that makes replicas on one Valkey and one folder."""
    made: list[Replica] = []

    def make(url: str = valkey_url) -> Replica:
        made.append(Replica(url, tmp_path, recorder, clock))
        return made[-1]

    yield make
    for each in made:
        await each.cache.aclose()


async def settled(cache: TieredCache) -> None:
    """Let the cache's background work end."""
    await cache._settled(cache._background)


async def test_a_stored_value_is_in_every_tier(replica) -> None:
    """`put` names the durable tiers; the writer's own next read is an L1 hit."""
    cache = replica().cache
    assert await cache.put(ENTRY) == Stored(("l2", "l3"), ENTRY)
    assert await cache.where(KEY) == {"l1": True, "l2": True, "l3": True}
    assert await cache.get(KEY) == (ENTRY, Outcome.L1)
    assert cache.get_now(KEY) is ENTRY


async def test_a_hit_fills_the_tiers_above(replica) -> None:
    """L3 only → found in L3, then in L1 at once, and in L2 (for the next replica) in the background."""
    first, second, third = replica(), replica(), replica()
    await first.cache.put(ENTRY)
    await first.l2.delete(redis_name(NAME))
    assert await second.cache.get(KEY) == (ENTRY, Outcome.L3)
    assert second.cache.get_now(KEY) == ENTRY
    await settled(second.cache)
    assert await third.cache.get(KEY) == (ENTRY, Outcome.L2)
    assert third.cache.get_now(KEY) == ENTRY


async def test_events_and_stats_agree(replica, recorder) -> None:
    """One get is one L1 event however often it was looked for synchronously; stats count the same."""
    cache = replica().cache
    cache.get_now(KEY)
    await cache.get(KEY)
    await cache.put(ENTRY)
    cache.get_now(KEY)
    await cache.get(KEY)
    assert recorder.results(TierRead, "l1") == ["miss", "hit", "hit"]
    assert recorder.results(TierRead, "l2") == ["miss"]
    assert recorder.results(TierWritten, "l3") == ["stored"]
    stats = cache.stats()
    assert (stats["l1"]["hit"], stats["l1"]["miss"], stats["l1"]["entries"]) == (2, 1, 1)
    assert stats["l2"] == {"miss": 1, "write_stored": 1, "breaker": "closed", "store_breaker": "closed"}
    assert stats["kind"] == "video"


async def test_the_first_render_is_everybodys(replica) -> None:
    """Two replicas rendered the same key to other bytes: the later adopts L3's, and L1 and L2 have those too."""
    first, second, third = replica(), replica(), replica()
    await first.cache.put(ENTRY)
    stored = await second.cache.put(Entry.of(KEY, b"not bit-reproducible"))
    assert stored == Stored(("l2", "l3"), ENTRY)
    assert second.cache.get_now(KEY) == ENTRY
    assert await third.cache.get(KEY) == (ENTRY, Outcome.L2)


async def test_an_l1_hit_extends_l2_once_an_hour(replica, clock) -> None:
    """A key that only L1 answers does not die in L2; the extension is debounced and awaited by nobody."""
    one = replica()
    await one.cache.put(ENTRY)

    async def ttl_after_a_hit() -> float:
        await one.l2.client.pexpire(redis_name(NAME), 5000)
        assert one.cache.get_now(KEY) == ENTRY
        await settled(one.cache)
        return await one.l2.client.pttl(redis_name(NAME)) / 1000

    assert await ttl_after_a_hit() <= 5
    clock.advance(HOUR)
    assert await ttl_after_a_hit() > 0.85 * WEEK
    assert await ttl_after_a_hit() <= 5
    clock.advance(HOUR)
    assert await ttl_after_a_hit() > 0.85 * WEEK


async def test_a_hit_above_counts_as_use_in_the_folder(replica, clock) -> None:
    """What L1 or L2 answers is not the longest unused in L3: its file is touched, at most once an hour."""
    one, two = replica(), replica()
    await one.cache.put(ENTRY)

    async def uses() -> float:
        for each in (one, two):
            await settled(each.cache)
            await each.l3.aclose()
        return one.l3.index.frequency(NAME)

    assert await uses() == 1
    assert await two.cache.get(KEY) == (ENTRY, Outcome.L2)
    assert await uses() == 2
    one.cache.get_now(KEY)
    assert await uses() == 2
    clock.advance(HOUR)
    one.cache.get_now(KEY)
    assert await uses() == 3


async def test_background_work_has_no_request_context(replica) -> None:
    """Under Ray Serve a task that inherits the request's context dies with it; ours inherits nothing."""
    request_id = contextvars.ContextVar("request_id")
    request_id.set("r1")
    one, seen = replica(), []
    await one.cache.put(ENTRY)
    await one.l2.delete(redis_name(NAME))
    one.l1.delete_now(KEY)
    write = one.cache._remotes[0].write

    async def watched(entry: Entry, *rest: Any) -> Entry | None:
        seen.append(request_id.get(None))
        return await write(entry, *rest)

    one.cache._remotes[0].write = watched
    await one.cache.get(KEY)
    await settled(one.cache)
    assert seen == [None]


async def test_delete_is_everywhere(replica) -> None:
    """Deleting names the tiers it removed from, and nobody finds the key again."""
    one, two = replica(), replica()
    await one.cache.put(ENTRY)
    assert await one.cache.delete(KEY) == ("l1", "l2", "l3")
    assert await one.cache.delete(KEY) == ()
    assert await one.cache.where(KEY) == {"l1": False, "l2": False, "l3": False}
    assert await two.cache.get(KEY) is None


async def test_forget_is_this_process_only(replica) -> None:
    """`forget` empties L1 for the key and leaves the shared tiers alone."""
    one = replica()
    await one.cache.put(ENTRY)
    assert one.cache.forget(KEY) is True
    assert one.cache.forget(KEY) is False
    assert await one.cache.where(KEY) == {"l1": False, "l2": True, "l3": True}


async def test_a_slow_read_does_not_bring_a_deleted_key_back(replica, monkeypatch) -> None:
    """A get that read L3 before the deletion and ends after it copies nothing up into L1 and L2."""
    one = replica()
    await one.cache.put(ENTRY)
    await one.l2.delete(redis_name(NAME))
    one.l1.delete_now(KEY)
    has_read, may_go_on, read = asyncio.Event(), asyncio.Event(), one.l3.get

    async def slow(name: str) -> bytes | None:
        data = await read(name)
        has_read.set()
        await may_go_on.wait()
        return data

    monkeypatch.setattr(one.l3, "get", slow)
    reading = asyncio.create_task(one.cache.get(KEY))
    await has_read.wait()
    await one.cache.delete(KEY)
    may_go_on.set()
    assert await reading == (ENTRY, Outcome.L3)
    await settled(one.cache)
    assert await one.cache.where(KEY) == {"l1": False, "l2": False, "l3": False}


async def test_a_copy_under_way_does_not_survive_a_deletion(replica, monkeypatch) -> None:
    """A background copy into L2 begun before the deletion is waited for and then deleted with the rest."""
    one = replica()
    await one.cache.put(ENTRY)
    await one.l2.delete(redis_name(NAME))
    one.l1.delete_now(KEY)
    set_, copying = one.l2.set, asyncio.Event()

    async def slow(*args: Any, **options: Any) -> bool:
        copying.set()
        await asyncio.sleep(0.05)
        return await set_(*args, **options)

    monkeypatch.setattr(one.l2, "set", slow)
    await one.cache.get(KEY)
    await copying.wait()
    assert await one.cache.delete(KEY) == ("l1", "l2", "l3")
    assert await one.cache.where(KEY) == {"l1": False, "l2": False, "l3": False}


async def test_a_corrupt_l2_value_falls_through_to_l3(replica, recorder) -> None:
    """What does not verify is deleted and counted; the next tier answers, and L2 is repaired from it."""
    one = replica()
    await one.cache.put(ENTRY)
    await one.l2.client.setrange(redis_name(NAME), 150, b"\0\0\0")
    one.cache.forget(KEY)
    assert await one.cache.get(KEY) == (ENTRY, Outcome.L3)
    assert recorder.results(TierRead, "l2") == ["corrupt"]
    await settled(one.cache)
    one.cache.forget(KEY)
    assert await one.cache.get(KEY) == (ENTRY, Outcome.L2)


async def test_a_dead_valkey_is_a_miss_and_a_counter(replica, start_valkey, recorder, clock) -> None:
    """L2 killed: hits come from L3, writes reach L3, errors are counted, and it heals when L2 is back."""
    server = start_valkey()
    one = replica(server.url)
    server.kill()
    assert await one.cache.get(KEY) is None
    assert await one.cache.put(ENTRY) == Stored(("l3",), ENTRY)
    one.cache.forget(KEY)
    assert await one.cache.get(KEY) == (ENTRY, Outcome.L3)
    assert await one.cache.where(KEY) == {"l1": True, "l2": None, "l3": True}
    assert await one.cache.delete(KEY) == ("l1", "l3")
    assert recorder.results(TierRead, "l2") == ["error", "error"]
    assert recorder.results(TierWritten, "l2")[0] == "error"
    server.restart()
    clock.advance(60)
    assert await one.cache.put(ENTRY) == Stored(("l2", "l3"), ENTRY)


async def test_with_every_shared_tier_dead_memory_still_serves(hanging_port, refused_port, recorder) -> None:
    """Silent Valkey, refusing S3: nothing raises, nothing is stored, L1 answers, and soon no time is lost."""
    cache = TieredCache(
        "video",
        secret=b"secret",
        l1=MemoryTier(1 << 20),
        l2=RedisTier(f"redis://127.0.0.1:{hanging_port}", connect_timeout=0.1, socket_timeout=0.1),
        l3=S3Store(
            "bucket",
            endpoint_url=f"http://127.0.0.1:{refused_port}",
            region="us-east-1",
            access_key_id="a",
            secret_access_key="b",
        ),
        telemetry=recorder,
    )
    assert await cache.get(KEY) is None
    assert await cache.put(ENTRY) == Stored((), ENTRY)
    assert await cache.get(KEY) == (ENTRY, Outcome.L1)
    assert await cache.delete(KEY) == ("l1",)
    assert await cache.where(KEY) == {"l1": False, "l2": None, "l3": None}
    started = time.monotonic()
    for _ in range(20):
        assert await cache.get(KEY) is None
    assert time.monotonic() - started < 5
    assert set(recorder.results(TierRead, "l3")) == {"error"}
    await cache.aclose()


async def test_a_value_too_large_for_a_tier_is_counted(valkey_url, tmp_path, recorder) -> None:
    """Each tier has its bound; what one refuses the others still have."""
    cache = TieredCache(
        "video",
        secret=b"secret",
        l1=MemoryTier(5000),
        l2=RedisTier(valkey_url, max_value_bytes=5000),
        l3=FolderStore(tmp_path),
        telemetry=recorder,
    )
    large = Entry.of(KEY, bytes(10_000))
    assert await cache.put(large) == Stored(("l3",), large)
    assert [recorder.results(TierWritten, tier) for tier in ("l1", "l2", "l3")] == [
        ["too_large"],
        ["too_large"],
        ["stored"],
    ]
    assert await cache.get(KEY) == (large, Outcome.L3)
    await cache.aclose()


async def test_without_tiers_it_is_an_empty_cache() -> None:
    """Every tier is optional, all of them at once too."""
    cache = TieredCache("latents", secret=b"secret")
    assert await cache.put(ENTRY) == Stored((), ENTRY)
    assert (cache.get_now(KEY), await cache.get(KEY)) == (None, None)
    assert (await cache.where(KEY), await cache.delete(KEY), cache.stats()) == ({}, (), {"kind": "latents"})
    await cache.aclose()


async def test_any_aiocache_backend_stands_in_for_l2() -> None:
    """aiocache's own memory backend serves as L2 between two caches."""
    shared = SimpleMemoryCache()
    one, two = (TieredCache("video", secret=b"secret", l1=MemoryTier(1 << 20), l2=shared) for _ in range(2))
    assert await one.put(ENTRY) == Stored(("l2",), ENTRY)
    assert await two.get(KEY) == (ENTRY, Outcome.L2)


async def test_kinds_and_secrets_do_not_meet(valkey_url) -> None:
    """The same key of another kind, or under another deployment's secret, is another value; names show no key."""
    tier = RedisTier(valkey_url)
    await TieredCache("video", secret=b"one", l2=tier).put(ENTRY)
    assert await TieredCache("latents", secret=b"one", l2=tier).get(KEY) is None
    assert await TieredCache("video", secret=b"two", l2=tier).get(KEY) is None
    assert await TieredCache("video", secret=b"one", l2=tier).get(KEY) == (ENTRY, Outcome.L2)
    assert KEY.encode() not in b"".join(await tier.client.keys())
    await tier.close()


def test_get_now_needs_no_event_loop(tmp_path) -> None:
    """An L1 hit works where no loop runs; its extension is left out then."""
    l1 = MemoryTier(1 << 20)
    cache = TieredCache("video", secret=b"secret", l1=l1, l3=FolderStore(tmp_path))
    l1.set_now(KEY, ENTRY)
    assert cache.get_now(KEY) is ENTRY


async def test_an_l1_hit_costs_microseconds(replica) -> None:
    """The whole synchronous path of a hit, event included, stays under 50 µs on average on a busy machine."""
    cache = replica().cache
    await cache.put(Entry.of(KEY, bytes(300_000)))
    started = time.process_time()
    for _ in range(5000):
        cache.get_now(KEY)
    assert (time.process_time() - started) / 5000 < 50e-6


async def test_background_work_is_bounded(replica, clock, monkeypatch) -> None:
    """When L2 is slow, copies do not pile up in memory: beyond 64 they are left out."""
    one = replica()
    never = asyncio.Event()

    async def slow(*_: Any, **__: Any) -> bool:
        await never.wait()
        return True

    entries = [Entry.of(f"{n:064x}", b"data") for n in range(200)]
    for entry in entries:
        await one.cache.put(entry)
    clock.advance(HOUR)
    monkeypatch.setattr(one.l2, "extend", slow)
    for entry in entries:
        one.cache.get_now(entry.key)
    await asyncio.sleep(0.05)
    assert 0 < len(one.cache._background) <= 64
    never.set()
    await one.cache.aclose()
    assert not one.cache._background


def test_a_rule_costs_no_hash_for_each_entry_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """L1 is judged by new rules alone, and what an entry is called is computed once, not again for every rule."""
    rules = RuleBook(Labels(b"secret"))
    cache = TieredCache("video", secret=b"secret", l1=MemoryTier(1 << 24), rules=rules)
    tag = rules.labels.of("tag", "red")
    for number in range(200):
        cache.remember(Entry.of(f"{number:064x}", b"v", provenance(number, [tag] if number % 2 else [])))
    hashed: list[str] = []
    of_value = Labels.of_value
    monkeypatch.setattr(Labels, "of_value", lambda self, kind, key: hashed.append(key) or of_value(self, kind, key))
    for number in range(50):
        rules.learn([Rule("tag", f"{number:064x}", 10**6, 10**6 + number)])
    assert len(hashed) <= 200
    rules.learn([Rule("tag", tag, 100, 10**7), Rule("key", rules.labels.of("key", f"{2:064x}"), 100, 10**7)])
    assert cache.invalidated == 51
    rules.learn([Rule("everything", EVERYTHING, 150, 10**7)])
    assert sorted(int(key, 16) for key in cache._l1._slots) == list(range(150, 200))
