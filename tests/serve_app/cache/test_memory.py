"""L1: bounded in bytes at every moment, least recently used first, and a full aiocache backend."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict

import pytest
from aiocache.base import BaseCache
from aiocache.plugins import HitMissRatioPlugin, TimingPlugin
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from serve_app.cache.memory import _OVERHEAD, MemoryTier
from serve_app.core import Entry
from serve_app.telemetry import Evicted


def entry(key: str, size: int = 10) -> Entry:
    return Entry.of(key, b"x" * size)


def cost(key: str, size: int) -> int:
    return _OVERHEAD + len(key) + size


class Lru(RuleBasedStateMachine):
    """MemoryTier beside a naive LRU: after any calls both hold the same, and the bound holds."""

    BOUND, SHARE = 20_000, 0.5
    keys = st.sampled_from("abcdefghijkl")

    def __init__(self) -> None:
        super().__init__()
        self.tier = MemoryTier(self.BOUND, max_share=self.SHARE)
        self.naive: OrderedDict[str, int] = OrderedDict()

    @rule(key=keys, size=st.integers(0, 12_000))
    def set(self, key: str, size: int) -> None:
        fits = cost(key, size) <= self.BOUND * self.SHARE
        assert self.tier.set_now(key, entry(key, size)) is fits
        self.naive.pop(key, None)
        if fits:
            self.naive[key] = size
        while sum(cost(k, s) for k, s in self.naive.items()) > self.BOUND:
            self.naive.popitem(last=False)

    @rule(key=keys)
    def get(self, key: str) -> None:
        found = self.tier.get_now(key)
        assert (found.size if found else None) == self.naive.get(key)
        if key in self.naive:
            self.naive.move_to_end(key)

    @rule(key=keys)
    def delete(self, key: str) -> None:
        assert self.tier.delete_now(key) is (self.naive.pop(key, None) is not None)

    @invariant()
    def holds_the_same(self) -> None:
        stats = self.tier.stats()
        assert stats["entries"] == len(self.naive)
        assert stats["bytes"] == sum(cost(k, s) for k, s in self.naive.items()) <= self.BOUND


Lru.TestCase.settings = settings(max_examples=50, deadline=None)
test_it_is_an_lru_bounded_in_bytes = Lru.TestCase


def test_eviction_is_told(recorder) -> None:
    """What had to go is one event with count and bytes, and a look at a value does not save it, a use does."""
    tier = MemoryTier(3 * cost("a", 1000), max_share=1.0, telemetry=recorder)
    for key in "abc":
        tier.set_now(key, entry(key, 1000))
    tier.contains_now("a")
    tier.get_now("b")
    tier.set_now("d", entry("d", 2000))  # a and c have to go: d is as large as one entry and 1000 bytes more
    assert [key for key in "abcd" if tier.contains_now(key)] == ["b", "d"]
    assert recorder.events == [Evicted("l1", 2, 2 * cost("a", 1000))]
    assert tier.stats()["evicted"] == 2


def test_a_value_too_large_is_refused_and_counted() -> None:
    """A value above the share is not kept, evicts nothing, and its older form is gone."""
    tier = MemoryTier(100_000)
    tier.set_now("a", entry("a"))
    tier.set_now("b", entry("b"))
    assert tier.set_now("b", entry("b", 50_000)) is False
    assert (tier.contains_now("a"), tier.contains_now("b"), tier.stats()["refused"]) == (True, False, 1)


def test_a_hit_takes_microseconds() -> None:
    """The synchronous look-up of a 300 kB value stays under 20 µs on average, on a busy machine too."""
    tier = MemoryTier(10_000_000)
    tier.set_now("a", entry("a", 300_000))
    started = time.process_time()
    for _ in range(10_000):
        tier.get_now("a")
    assert (time.process_time() - started) / 10_000 < 20e-6


async def test_it_is_an_aiocache_backend() -> None:
    """aiocache's public methods work on it, with its plugins and per-call timeouts."""
    tier = MemoryTier(1_000_000, plugins=[HitMissRatioPlugin(), TimingPlugin()])
    assert isinstance(tier, BaseCache)
    assert await tier.set("a", entry("a"), timeout=1)
    assert await tier.get("a", timeout=1) == entry("a")
    assert await tier.get("missing", default="nothing") == "nothing"
    assert await tier.exists("a")
    await tier.multi_set([("b", entry("b")), ("c", entry("c"))])
    assert await tier.multi_get(["b", "z", "c"]) == [entry("b"), None, entry("c")]
    with pytest.raises(ValueError, match="exists"):
        await tier.add("a", entry("a"))
    assert await tier.add("new", entry("new"))
    assert await tier.delete("a") == 1
    assert await tier.delete("a") == 0
    assert tier.hit_miss_ratio == {"total": 5, "hits": 4, "hit_ratio": 0.8}  # a default counts as found
    assert tier.profiling["set_total"] == 1


async def test_namespaces_are_cleared_apart() -> None:
    """aiocache's namespaces separate keys, and clearing one leaves the other."""
    tier = MemoryTier(1_000_000)
    await tier.set("a", entry("a"), namespace="x:")
    await tier.set("a", entry("a"), namespace="y:")
    await tier.clear(namespace="x:")
    assert [await tier.exists("a", namespace=space) for space in ("x:", "y:")] == [False, True]
    await tier.clear()
    assert tier.stats()["bytes"] == 0


async def test_ttl_ends_a_value(clock) -> None:
    """A TTL is kept where one is given, can be changed and taken away; default is none."""
    tier = MemoryTier(1_000_000, clock=clock)
    for key in ("short", "longer", "kept"):
        await tier.set(key, entry(key), ttl=10)
    await tier.set("forever", entry("forever"))
    assert await tier.expire("longer", 100)
    assert await tier.expire("kept", 0)
    assert not await tier.expire("missing", 5)
    clock.advance(11)
    assert await tier.get("short") is None
    assert tier.stats()["entries"] == 3
    clock.advance(100)
    assert [await tier.exists(key) for key in ("longer", "kept", "forever")] == [False, True, True]


async def test_a_slow_plugin_meets_the_timeout() -> None:
    """aiocache's timeout argument bounds a call, plugins included."""

    class Slow(TimingPlugin):
        async def pre_get(self, *args: object, **kwargs: object) -> None:
            await asyncio.sleep(10)

    tier = MemoryTier(1_000_000, plugins=[Slow()])
    with pytest.raises(asyncio.TimeoutError):
        await tier.get("a", timeout=0.01)
