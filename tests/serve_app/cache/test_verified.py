"""Nothing unverified enters memory: every damage, in every tier, of every kind of value, on every way in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve_app.cache.cache import TieredCache
from serve_app.cache.memory import MemoryTier
from serve_app.cache.objects.folder import FolderStore
from serve_app.cache.objects.s3 import S3Store
from serve_app.cache.redis.redis import RedisTier
from serve_app.cache.storage_name import Kind, redis_name, storage_name
from serve_app.cache.store import AiocacheStore
from serve_app.core import Entry, Outcome, Urgency
from serve_app.flight.record import Found, Leading
from serve_app.flight.redis_record import RedisFlightRecords
from serve_app.telemetry import TierRead
from tests.serve_app.cache.frames import framed
from tests.serve_app.service.rig import a_plan

SECRET = b"secret"
PLAN, OTHER = a_plan("a red circle"), a_plan("a blue square")


def key_of(kind: Kind, plan: Any = PLAN) -> str:
    """The key of one kind of value in a request's chain."""
    return {"video": plan.keys.video, "embedding": plan.keys.prompt, "latents": plan.keys.latents}[kind]


def entry_of(kind: Kind, plan: Any = PLAN) -> Entry:
    return Entry.of(key_of(kind, plan), f"{kind} of {plan.spec.prompt}".encode() * 100, {"shape": [4, 1, 4, 4]})


def packed(kind: Kind, plan: Any = PLAN) -> bytes:
    return framed(entry_of(kind, plan), kind, SECRET)


def flipped(position: int) -> Callable[[Kind], bytes]:
    def damage(kind: Kind) -> bytes:
        frame = bytearray(packed(kind))
        frame[position] ^= 0b100
        return bytes(frame)

    return damage


NEXT: dict[Kind, Kind] = {"video": "embedding", "embedding": "latents", "latents": "video"}
DAMAGES: dict[str, Callable[[Kind], bytes]] = {
    "a bit of the version": flipped(4),
    "a bit of the header": flipped(80),
    "a bit of the payload": flipped(-1),
    "cut in the prefix": lambda kind: packed(kind)[:20],
    "cut in the payload": lambda kind: packed(kind)[:-1],
    "empty": lambda kind: b"",
    "bytes behind the end": lambda kind: packed(kind) + b"\0",
    "another request's": lambda kind: packed(kind, OTHER),
    "another kind's": lambda kind: packed(NEXT[kind]),
    "another kind's bytes under this key": lambda kind: packed(kind).replace(
        entry_of(kind).data, entry_of(NEXT[kind]).data
    ),
}
DAMAGED = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())


@pytest.fixture
async def tiers(request, valkey_url, tmp_path: Path, s3_store: Callable[..., S3Store]) -> dict[str, Any]:
    """One shared tier as TieredCache takes it, and the store behind it."""
    if request.param == "valkey":
        redis = RedisTier(valkey_url)
        return {"tier": "l2", "store": AiocacheStore(redis), "given": {"l2": redis}}
    store = FolderStore(tmp_path) if request.param == "folder" else s3_store()
    return {"tier": "l3", "store": store, "given": {"l3": store}}


async def replace(store: Any, name: str, frame: bytes) -> None:
    """Put other bytes where a value was, as a failing disk or a mistaken operator would."""
    await store.delete(name)
    assert await store.put(name, frame) == frame


@DAMAGED
@pytest.mark.parametrize("kind", ["video", "embedding", "latents"])
@pytest.mark.parametrize("tiers", ["valkey", "folder", "s3"], indirect=True)
async def test_what_does_not_verify_is_a_miss(
    tiers: dict[str, Any], kind: Kind, damage: Callable[[Kind], bytes], recorder: Any
) -> None:
    """Never served, never in memory, counted, and gone from the tier, so that the next one takes its place."""
    store, tier, entry = tiers["store"], tiers["tier"], entry_of(kind)
    cache = TieredCache(kind, secret=SECRET, l1=MemoryTier(1 << 20), telemetry=recorder, **tiers["given"])
    name = storage_name(SECRET, kind, entry.key)
    await replace(store, name, damage(kind))
    assert await cache.get(entry.key) is None
    assert cache.get_now(entry.key) is None
    assert recorder.results(TierRead, tier) == ["corrupt"]
    assert cache.stats()[tier]["corrupt"] == 1
    assert await store.contains(name) is False
    assert tier in (await cache.put(entry)).tiers
    cache.forget(entry.key)
    assert await cache.get(entry.key) == (entry, Outcome(tier))
    await cache.aclose()


@DAMAGED
async def test_what_the_flights_script_brings_is_verified_too(
    valkey_url: str, damage: Callable[[Kind], bytes], recorder: Any
) -> None:
    """The script that boards a flight returns bytes of L2: the same check, deletion and count; then it leads."""
    redis, entry = RedisTier(valkey_url), entry_of("video")
    cache = TieredCache("video", secret=SECRET, l1=MemoryTier(1 << 20), l2=redis, telemetry=recorder)
    flights = RedisFlightRecords(redis, secret=SECRET, linger_seconds=1)
    name = storage_name(SECRET, "video", entry.key)
    await redis.set(redis_name(name), damage("video"))
    found = await flights.join_or_lead(entry.key, "a waiter", Urgency())
    assert isinstance(found, Found)
    assert await cache.arrived_from_l2(entry.key, found.frame, 0.001) is None
    assert recorder.results(TierRead, "l2") == ["corrupt"]
    assert cache.get_now(entry.key) is None
    assert await redis.exists(redis_name(name)) is False
    assert isinstance(await flights.join_or_lead(entry.key, "a waiter", Urgency()), Leading)
    await flights.aclose()
    await cache.aclose()


async def test_a_write_once_tier_does_not_keep_a_damaged_value(tmp_path: Path, recorder: Any) -> None:
    """Whoever stores where damage lies does not adopt it: it is replaced, and everybody reads what was stored."""
    store, entry = FolderStore(tmp_path), entry_of("latents")
    cache = TieredCache("latents", secret=SECRET, l3=store, telemetry=recorder)
    name = storage_name(SECRET, "latents", entry.key)
    for damage in DAMAGES.values():
        await replace(store, name, damage("latents"))
        stored = await cache.put(entry)
        assert (stored.tiers, stored.entry) == (("l3",), entry)
        assert await cache.get(entry.key) == (entry, Outcome.L3)
    await cache.aclose()
