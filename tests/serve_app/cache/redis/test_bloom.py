"""Bloom filters in a real Valkey: never a false "no", few false "maybes", grown, built anew, forgotten and lost."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.cache.redis import bloom as bloom_module
from serve_app.cache.redis.bloom import FALSE_POSITIVES, FIRST_LAYER, BloomFilter
from serve_app.cache.redis.bloom_builder import BloomBuilder
from serve_app.cache.redis.lease import Lease
from serve_app.cache.redis.redis import RedisTier
from serve_app.cache.storage_name import SHARDS, shard_of
from serve_app.errors import TierError

PATIENT: dict[str, Any] = {"connect_timeout": 30.0, "socket_timeout": 30.0, "deadline": 60.0}
"""A busy test machine is no broken server."""


def name_of(number: int) -> str:
    """A storage name: HMACs are as uniform as this."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def in_shard(shard: int, count: int, start: int = 0) -> list[str]:
    """The first `count` names of a shard from `start` on."""
    found: list[str] = []
    number = start
    while len(found) < count:
        name = name_of(number)
        if shard_of(name) == shard:
            found.append(name)
        number += 1
    return found


@pytest.fixture
async def tier(valkey_url: str) -> AsyncIterator[RedisTier]:
    tier = RedisTier(valkey_url, **PATIENT)
    yield tier
    await tier.close()


@pytest.fixture
async def bloom(tier: RedisTier) -> AsyncIterator[BloomFilter]:
    bloom = BloomFilter(tier)
    yield bloom
    await bloom.aclose()


def listing(names: Iterable[str], between: Callable[[int], Any] | None = None) -> Callable[[], AsyncIterator[str]]:
    """A store's `names`; `between(n)` is awaited after the n-th."""

    async def names_of() -> AsyncIterator[str]:
        for number, name in enumerate(names):
            yield name
            if between is not None:
                await between(number)

    return names_of


def builder(
    bloom: BloomFilter, tier: RedisTier, names: Callable[[], AsyncIterator[str]], **options: Any
) -> BloomBuilder:
    return BloomBuilder(bloom, names, Lease(tier, "bloom"), **options)


async def answers(bloom: BloomFilter, names: Iterable[str]) -> list[bool | None]:
    return list(await asyncio.gather(*(bloom.may_have(name) for name in names)))


async def test_a_filter_that_was_never_built_says_maybe(bloom: BloomFilter) -> None:
    """Names added before the filter knows what L3 held already do not make it whole."""
    await bloom.add(name_of(1))
    assert await answers(bloom, [name_of(1), name_of(2)]) == [None, None]


async def test_what_was_listed_or_added_may_be_there_and_the_rest_is_not(bloom: BloomFilter, tier: RedisTier) -> None:
    """A filter that was built says yes to what L3 listed and to what was written since, and no to hardly less."""
    stored = [name_of(number) for number in range(500)]
    assert await builder(bloom, tier, listing(stored)).build()
    new = [name_of(number) for number in range(500, 600)]
    for name in new:
        await bloom.add(name)
    assert await answers(bloom, stored + new) == [True] * 600
    absent = await answers(bloom, (name_of(number) for number in range(10_000, 13_000)))
    assert absent.count(False) > 0.99 * len(absent)
    assert None not in absent


async def test_an_empty_store_has_a_filter_too(bloom: BloomFilter, tier: RedisTier) -> None:
    """A fresh deployment needs not look into its empty L3 even once."""
    await builder(bloom, tier, listing([])).build()
    assert await answers(bloom, map(name_of, range(100))) == [False] * 100


async def test_a_filter_that_grew_keeps_its_share_of_false_positives(bloom: BloomFilter, tier: RedisTier) -> None:
    """After four doublings nothing added is missing, and false positives stay below what is promised."""
    await builder(bloom, tier, listing([])).build()
    shard, room = 7, FIRST_LAYER * 12
    added = in_shard(shard, room)
    for start in range(0, room, 400):  # as a writer adds them, only more at a time
        await bloom._run(bloom_module._ADD, bloom_module._keys(shard), ["", *added[start : start + 400]])
    assert all(await answers(bloom, added))
    assert (await bloom.shards())[shard]["layers"] == 4  # 1 + 2 + 4 + 8 times the first layer's room
    absent = in_shard(shard, 4_000, start=10_000_000)
    wrong = (await answers(bloom, absent)).count(True)
    assert wrong / len(absent) < FALSE_POSITIVES


async def test_adding_twice_takes_no_more_room(bloom: BloomFilter, tier: RedisTier) -> None:
    """What is in the filter already is not counted again."""
    await builder(bloom, tier, listing([])).build()
    name = name_of(3)
    for _ in range(5):
        await bloom.add(name)
    assert (await bloom.shards())[shard_of(name)]["names"] == 1


async def test_building_anew_forgets_what_was_deleted(bloom: BloomFilter, tier: RedisTier) -> None:
    """Bits cannot be taken out; a new filter has none of what L3 does not list any more, and one layer for the rest."""
    gone, kept = in_shard(1, 900)[:450], in_shard(1, 900)[450:]
    await builder(bloom, tier, listing(gone + kept)).build()
    assert (await bloom.shards())[1]["layers"] == 3
    await builder(bloom, tier, listing(kept)).build()
    assert all(await answers(bloom, kept))
    assert (await answers(bloom, gone)).count(False) > 440
    assert (await bloom.shards())[1]["layers"] == 1


async def test_what_is_written_while_building_is_in_the_new_filter(bloom: BloomFilter, tier: RedisTier) -> None:
    """A name that the listing has passed, or not reached, is added to both filters by whoever writes it."""
    stored, late = [name_of(number) for number in range(50)], [name_of(number) for number in range(50, 100)]
    await builder(bloom, tier, listing(stored, lambda number: bloom.add(late[number]))).build()
    assert await answers(bloom, stored + late) == [True] * 100


async def test_the_old_filter_answers_until_the_new_one_is_whole(bloom: BloomFilter, tier: RedisTier) -> None:
    """Building does not turn the filter off."""
    stored, asked = [name_of(number) for number in range(20)], []

    async def ask(number: int) -> None:
        asked.append(await bloom.may_have(stored[0]))
        asked.append(await bloom.may_have(name_of(10_000 + number)))

    await builder(bloom, tier, listing(stored)).build()
    await builder(bloom, tier, listing(stored, ask)).build()
    assert set(asked[0::2]) == {True}
    assert set(asked[1::2]) == {False}


async def test_a_builder_that_was_slow_is_fenced_off(bloom: BloomFilter, tier: RedisTier) -> None:
    """Of two builders the one that began last finishes; the other's half list never comes into use."""
    stored = [name_of(number) for number in range(1_000)]

    async def overtaken(number: int) -> None:
        if number == 10:
            assert await builder(bloom, tier, listing(stored)).build()

    assert not await BloomBuilder(bloom, listing(stored[:20], overtaken), Lease(tier, "another")).build()
    assert all(await answers(bloom, stored))


async def test_a_builder_that_died_leaves_the_old_filter_in_use(bloom: BloomFilter, tier: RedisTier) -> None:
    """A listing that breaks off changes nothing, and the next builder begins from nothing."""
    stored = [name_of(number) for number in range(100)]
    await builder(bloom, tier, listing(stored)).build()

    async def break_off(number: int) -> None:
        raise TierError("the store went away")

    with pytest.raises(TierError):
        await builder(bloom, tier, listing([name_of(7)], break_off)).build()
    assert all(await answers(bloom, stored))
    await bloom.add(name_of(999))
    assert await builder(bloom, tier, listing([*stored, name_of(999)])).build()
    assert all(await answers(bloom, [*stored, name_of(999)]))


@pytest.mark.parametrize("part", ["meta", "bits"])
async def test_a_filter_that_redis_lost_or_evicted_says_maybe(bloom: BloomFilter, tier: RedisTier, part: str) -> None:
    """Whichever half an eviction takes: no bits must not look like nothing stored."""
    name = name_of(5)
    await builder(bloom, tier, listing([name])).build()
    await tier.client.delete(f"encore:bloom:{{{shard_of(name):02}}}{part}")
    assert await bloom.may_have(name) is None


async def test_look_builds_what_is_missing_or_old_and_only_once(bloom: BloomFilter, tier: RedisTier) -> None:
    """The first look builds, the next finds nothing to do; a day later, or with a shard lost, it builds again."""
    seconds = (await tier.client.time())[0]
    now = [float(seconds)]
    each = builder(bloom, tier, listing([name_of(1)]), clock=lambda: now[0])
    assert [await each.look(), await each.look()] == [True, False]
    now[0] += 90_000
    assert await each.look()
    now[0] = seconds
    await tier.client.delete("encore:bloom:{05}meta")
    assert [await each.look(), await each.look()] == [True, False]


async def test_only_the_process_with_the_lease_builds(bloom: BloomFilter, tier: RedisTier) -> None:
    """While another process has the lease, a look does nothing; when it is given back, it does."""
    other = Lease(tier, "bloom")
    assert await other.take()
    each = builder(bloom, tier, listing([]))
    assert not await each.look()
    await other.give_back()
    assert await each.look()


async def test_names_are_told_when_redis_is_back(
    start_valkey: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written while Redis was away is in the filter soon after, and its writer never says no to it."""
    monkeypatch.setattr(bloom_module, "RETRY_SECONDS", 0.02)
    server = start_valkey(persistent=True)
    tier = RedisTier(server.url)
    bloom, other = BloomFilter(tier), BloomFilter(tier)
    bloom._circuit.reach._retry_after = 0.0
    try:
        await builder(bloom, tier, listing([])).build()
        await tier.client.bgrewriteaof()
        server.kill()
        await bloom.add(name_of(1))
        assert bloom.stats()["untold"] == 1
        server.restart()
        assert await bloom.may_have(name_of(1)) in (True, None)
        async with asyncio.timeout(20):
            while bloom.stats()["untold"]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert await other.may_have(name_of(1)) is True
    finally:
        await bloom.aclose()
        await tier.close()


async def test_a_redis_that_does_not_answer_says_maybe(refused_port: int) -> None:
    """The filter is never a reason to fail a request, and is left alone after a few failures."""
    bloom = BloomFilter(RedisTier(f"redis://127.0.0.1:{refused_port}"))
    assert await answers(bloom, map(name_of, range(5))) == [None] * 5
    assert bloom.stats()["breaker"] == "open"


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(["add", "list", "build"]), st.integers(0, 40)), max_size=12))
async def test_no_history_makes_the_filter_say_no_to_a_stored_name(steps: list[tuple[str, int]]) -> None:
    """Whatever is added, deleted and built in whatever order: what L3 has, the filter never denies."""
    tier = RedisTier(_URL[0], **PATIENT)
    bloom, stored = BloomFilter(tier), set()
    await tier.client.flushdb()
    try:
        for verb, number in steps:
            if verb == "add":
                await bloom.add(name_of(number))
                stored.add(name_of(number))
            elif verb == "list":
                stored.discard(name_of(number))
            else:
                await builder(bloom, tier, listing(sorted(stored))).build()
            assert False not in await answers(bloom, stored)
    finally:
        await tier.close()


_URL = [""]


@pytest.fixture(autouse=True)
def url(valkey_url: str) -> None:
    """Where the property test, which may take no function-scoped fixture, finds the server."""
    _URL[0] = valkey_url


def test_shards_are_even() -> None:
    """Each shard gets its share of names."""
    counts = [0] * SHARDS
    for number in range(64_000):
        counts[shard_of(name_of(number))] += 1
    assert min(counts) > 800
    assert max(counts) < 1_200
