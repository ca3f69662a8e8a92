"""L2 on a real Valkey: a TTL of a value's own, and extensions that never shorten one."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiocache import SimpleMemoryCache

from serve_app.cache.cache import TieredCache
from serve_app.cache.memory import MemoryTier
from serve_app.cache.redis.redis import WEEK, RedisTier
from serve_app.cache.storage_name import redis_name, storage_name
from serve_app.cache.store import AiocacheStore
from serve_app.core import Entry, Urgency
from serve_app.flight.record import Leading
from serve_app.flight.redis_record import RedisFlightRecords
from serve_app.telemetry import Event, Telemetry

KEY = "ab" * 32
NAME = redis_name(storage_name(b"s", "video", KEY))
DAY = 86_400


@pytest.fixture
async def tier(valkey_url: str) -> AsyncIterator[RedisTier]:
    tier = RedisTier(valkey_url, jitter=0)
    yield tier
    await tier.client.aclose()


async def left(tier: RedisTier, name: str = NAME) -> float:
    return float(await tier.client.pttl(name)) / 1000


async def test_extending_makes_longer_and_never_shorter(tier: RedisTier) -> None:
    """A value is kept for what is asked or for what it had, whichever is longer; for ever stays for ever."""
    await tier.set(NAME, b"v", ttl=100)
    assert await tier.extend(NAME, 1000)
    assert 990 < await left(tier) <= 1000
    assert await tier.extend(NAME, 10)
    assert await left(tier) > 990
    assert await tier.extend(NAME)
    assert WEEK - 10 < await left(tier) <= WEEK
    await tier.client.persist(NAME)
    assert await tier.extend(NAME, 10)
    assert await tier.client.pttl(NAME) == -1
    assert not await tier.extend("missing", 10)


async def test_a_touch_keeps_a_longer_ttl(tier: RedisTier) -> None:
    """The extension behind an L1 hit does not shorten what was stored for longer."""
    await tier.set(NAME, b"v", ttl=3 * WEEK)
    await AiocacheStore(tier).touch(storage_name(b"s", "video", KEY))
    assert await left(tier) > 2 * WEEK


async def test_a_backend_that_cannot_tell_gets_what_is_asked() -> None:
    """Any aiocache backend can be extended; whether the value is there is told all the same."""
    store, name = AiocacheStore(SimpleMemoryCache()), storage_name(b"s", "video", KEY)
    await store.put(name, b"v")
    assert await store.extend(name, 100)
    assert await store.extend(name)
    assert not await store.extend(storage_name(b"s", "video", "cd" * 32), 100)
    await store.aclose()


@pytest.mark.parametrize(("ttl", "seconds"), [(None, WEEK), (DAY, DAY), (4 * WEEK, 4 * WEEK)])
async def test_a_flight_lands_with_a_ttl_of_its_own(tier: RedisTier, ttl: float | None, seconds: float) -> None:
    """The script that ends a flight stores the value for as long as it is told; a look at it is a use."""
    flights = RedisFlightRecords(tier, secret=b"s", linger_seconds=1.0)
    join_result = await flights.join_or_lead(KEY, "waiter", Urgency())
    assert isinstance(join_result, Leading)
    assert await flights.complete(KEY, join_result.token, b"frame", "", ttl=ttl)
    assert seconds - 10 < await left(tier) <= seconds
    await flights.join_or_lead(KEY, "another", Urgency())
    assert await left(tier) > max(seconds, WEEK) - 10
    await flights.aclose()


async def test_what_is_verified_is_kept_and_no_use(tier: RedisTier) -> None:
    """A whole value is kept for the time asked, never less; a broken one is deleted; neither is a hit."""
    events: list[Event] = []
    cache = TieredCache("video", secret=b"s", l1=MemoryTier(1 << 20), l2=tier, telemetry=Telemetry(events.append))
    await cache.put(Entry.of(KEY, b"video"))
    cache.forget(KEY)
    events.clear()
    await tier.client.expire(NAME, 50)
    assert await cache.verified(KEY, DAY)
    assert DAY - 10 < await left(tier) <= DAY
    assert await cache.verified(KEY, 10)
    assert await left(tier) > DAY - 10
    assert not cache.contains_now(KEY)
    await tier.client.setrange(NAME, 60, b"?")
    assert not await cache.verified(KEY, 10)
    assert not await tier.client.exists(NAME)
    assert not await cache.verified(KEY, 10)
    assert not events
    store = AiocacheStore(SimpleMemoryCache())
    other = TieredCache("video", secret=b"s", l2=store._cache)
    await other.put(Entry.of(KEY, b"video"))
    assert await other.verified(KEY, DAY)


async def test_the_cache_extends_in_l2(tier: RedisTier) -> None:
    """True when L2 has the value, which is then kept; False when it has not, when it is away, when there is none."""
    cache = TieredCache("video", secret=b"s", l2=tier)
    await cache.put(Entry.of(KEY, b"video"))
    assert await cache.extend(KEY, 4 * WEEK)
    assert await left(tier) > 3 * WEEK
    assert not await cache.extend("cd" * 32, 10)
    assert not await TieredCache("video", secret=b"s").extend(KEY, 10)
    away = RedisTier("redis://127.0.0.1:1")
    assert not await TieredCache("video", secret=b"s", l2=away).extend(KEY, 10)
    await away.client.aclose()
