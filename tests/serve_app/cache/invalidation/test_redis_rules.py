"""The rules' scripts in a real Valkey: the newest of a label stays, the epoch only grows, tags bring their keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from serve_app.cache.invalidation import redis_rules
from serve_app.cache.invalidation.redis_rules import RedisRules, TooMany
from serve_app.cache.invalidation.rules import SharedClock
from serve_app.cache.redis.redis import RedisTier
from serve_app.core import EVERYTHING, Rule
from serve_app.errors import TierError
from tests.conftest import ValkeyServer

SECRET = b"a test's secret"


@pytest.fixture
async def open_rules(valkey_url: str) -> AsyncIterator[Callable[..., RedisRules]]:
    """A function that opens the rules as one more process does."""
    tiers: list[RedisTier] = []
    made: list[RedisRules] = []

    def open_them(**options: object) -> RedisRules:
        tiers.append(RedisTier(valkey_url))
        made.append(RedisRules(tiers[-1], secret=SECRET, **options))  # type: ignore[arg-type]
        return made[-1]

    yield open_them
    for each in made:
        await each.aclose()
    for tier in tiers:
        await tier.client.aclose()


async def test_a_rule_is_read_by_others(open_rules: Callable[..., RedisRules]) -> None:
    """What one adds another reads, with the same times; who knows the version is told nothing."""
    one, two = open_rules(), open_rules()
    assert (await two.read("")).version == ""
    added = await one.add("tag", ["a", "b"], older_than=5)
    reading = await two.read("")
    assert set(reading.rules or ()) == set(added.rules)
    assert {(rule.kind, rule.at - rule.before) for rule in added.rules} == {("tag", 5)}
    assert (await two.read(reading.version)).rules is None


async def test_the_newest_of_a_label_stays(open_rules: Callable[..., RedisRules]) -> None:
    """Merging an older rule changes neither the rule nor the epoch; a newer one changes both."""
    rules = open_rules(clock=lambda: 10.0)
    first = await rules.merge([Rule("tag", "a", 5, 6)])
    assert (await rules.merge([Rule("tag", "a", 4, 9)])).epoch == first.epoch
    later = await rules.merge([Rule("tag", "a", 7, 7)])
    assert later.epoch > first.epoch
    assert (await rules.read("")).rules == (Rule("tag", "a", 7, 7),)


async def test_an_epoch_is_never_said_twice(open_rules: Callable[..., RedisRules], valkey_server: ValkeyServer) -> None:
    """A Redis that was emptied has no version, and its next one is none that anybody knows."""
    rules = open_rules()
    seen = {(await rules.add("tag", [str(n)])).epoch for n in range(3)}
    valkey_server.flush()
    assert (await rules.read("anything")).version == ""
    assert (await rules.merge([])).epoch > max(seen)


async def test_a_clock_that_is_set_back_is_not_followed(open_rules: Callable[..., RedisRules]) -> None:
    """After a step back by 900 s an invalidation is later than all that began before it, wherever its maker comes from.

    The process that knew the time before the step carries it on; one that comes new is told it by Redis.
    """
    now = 1_800_000_000.0
    one, two = (open_rules(clock=lambda: now) for _ in range(2))
    clock = SharedClock(wall=lambda: 5.0, monotonic=lambda: 100.0)
    one.heard_of = clock.heard_of
    clock.heard((await one.read("")).now)
    begun = clock.now()
    now -= 900
    clock.heard((await one.read("")).now)
    assert clock.now() >= begun
    new = await two.add("key", ["a"])
    assert new.now > begun
    assert new.rules[0].before == new.now
    clock.heard((await one.read("")).now)
    later = clock.now()
    assert later >= new.now
    assert (await one.add("key", ["b"])).rules[0].before > later


async def test_a_step_forward_covers_what_is_before_it(open_rules: Callable[..., RedisRules]) -> None:
    """Set forward and back again, times go on from the latest: a rule never becomes earlier than one before it."""
    now = 1_800_000_000.0
    rules = open_rules(clock=lambda: now)
    befores = []
    for step in (0.0, 900.0, -900.0, -900.0, 900.0):
        now += step
        befores.append((await rules.add("key", [f"{len(befores)}"])).now)
    assert befores == sorted(set(befores))


async def test_an_evicted_rule_is_noticed(open_rules: Callable[..., RedisRules], valkey_url: str) -> None:
    """When Redis drops rules but not the epoch, the version is another one all the same."""
    rules = open_rules()
    await rules.add("tag", ["a"])
    version = (await rules.read("")).version
    await rules._redis.client.delete(rules._rules)
    assert (await rules.read(version)).rules == ()


async def test_a_tag_brings_the_keys_that_were_asked_for_with_it(open_rules: Callable[..., RedisRules]) -> None:
    """Ten thousand keys noted under a tag are rules of their own after its invalidation, once."""
    rules = open_rules()
    await rules.note({"t": {f"{n:064x}" for n in range(10_000)}, "u": {"f" * 64}})
    added = await rules.add("tag", ["t"], tag="t")
    assert len(added.rules) == 10_001
    assert min(rule.before for rule in added.rules) == added.now
    assert len((await rules.add("tag", ["t"], tag="t")).rules) == 1


async def test_who_listens_is_told(open_rules: Callable[..., RedisRules]) -> None:
    """Every change is a message: additions and retirements."""
    one, two = open_rules(), open_rules()
    heard = asyncio.Event()
    two.watch(heard.set)
    async with asyncio.timeout(30):
        while not heard.is_set():  # the subscription takes a moment
            added = await one.add("tag", ["a"])
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        heard.clear()
        await one.retire(added.rules)
        await heard.wait()


async def test_only_what_was_swept_for_is_retired(open_rules: Callable[..., RedisRules]) -> None:
    """A rule that was renewed meanwhile stays; the other goes with its sweep."""
    rules = open_rules()
    old = await rules.add("tag", ["a", "b"])
    await rules.swept(old.rules, 7)
    assert (await rules.read("")).swept == {"a": 7, "b": 7}
    await rules.add("tag", ["a"])
    await rules.retire(old.rules)
    reading = await rules.read("")
    assert [rule.label for rule in reading.rules or ()] == ["a"]
    assert reading.swept == {"a": 7}


async def test_other_secrets_have_other_rules(open_rules: Callable[..., RedisRules], valkey_url: str) -> None:
    """Two deployments on one Redis do not invalidate each other's videos."""
    await open_rules().add("tag", ["a"])
    tier = RedisTier(valkey_url)
    assert (await RedisRules(tier, secret=b"another").read("")).version == ""
    await tier.client.aclose()


async def test_a_broken_redis_is_a_tier_error(refused_port: int) -> None:
    """Whatever is asked of a Redis that is away raises TierError and nothing else."""
    tier = RedisTier(f"redis://127.0.0.1:{refused_port}")
    rules = RedisRules(tier, secret=SECRET)
    made = (Rule("tag", "a", 1, 1),)
    for call in (
        rules.read(""), rules.merge(made), rules.note({"t": {"k"}}), rules.swept(made, 1),
        rules.retire(made),
    ):  # fmt: skip
        with pytest.raises(TierError):
            await call
    await tier.client.aclose()


async def test_one_of_everything_takes_the_place_of_all_it_covers(open_rules: Callable[..., RedisRules]) -> None:
    """Older rules go when everything is invalidated, none of them comes back, and a newer one stands beside it."""
    rules = open_rules(clock=lambda: 10.0)
    await rules.merge([Rule("tag", "a", 5, 5), Rule("key", "b", 6, 6)])
    await rules.merge([Rule("everything", EVERYTHING, 6, 6)])
    await rules.merge([Rule("tag", "a", 5, 5), Rule("tag", "c", 7, 7)])
    assert set((await rules.read("")).rules or ()) == {Rule("everything", EVERYTHING, 6, 6), Rule("tag", "c", 7, 7)}


async def test_there_are_only_so_many_rules(
    open_rules: Callable[..., RedisRules], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of forty at a time from two processes as many are recorded as may be, a known label and everything always."""
    monkeypatch.setattr(redis_rules, "MAX_RULES", 8)
    one, two = open_rules(), open_rules()
    tries = await asyncio.gather(*((one, two)[n % 2].add("tag", [f"t{n}"]) for n in range(40)), return_exceptions=True)
    assert sum(isinstance(each, TooMany) for each in tries) == 32
    reading = await one.read("")
    assert len(reading.rules or ()) == 8
    await two.add("tag", [(reading.rules or ())[0].label])
    await two.add("everything", [EVERYTHING])
    assert len((await one.read("")).rules or ()) == 1
    await one.add("tag", ["again"])
