"""How rules reach every process: in virtual time, over a Redis and an L3 that are up, away, deaf or emptied."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.cache.invalidation.redis_rules import Added, Reading
from serve_app.cache.invalidation.rules import Labels, RuleBook, SharedClock
from serve_app.cache.invalidation.sync import KEPT_SECONDS, POLL_SECONDS, RuleSync
from serve_app.core import Rule
from serve_app.errors import TierError, Unavailable
from tests.virtual_time import Process, World

T = TypeVar("T")
EPOCH = 1_800_000_000
MICROSECONDS = 1_000_000


class Shared:
    """What one Redis and one L3 hold of rules, and whether they can be reached; the scripts as plain Python."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rules: dict[str, Rule] = {}
        self.epoch = 0
        self.swept: dict[str, int] = {}
        self.mirror: frozenset[Rule] = frozenset()
        self.redis_up = self.l3_up = True
        self.deaf = False
        self.ears: list[tuple[Process, Callable[[], None]]] = []
        self.polls = 0

    def now(self) -> int:
        return round((EPOCH + self.world.now) * MICROSECONDS)

    def add(self, rules: list[Rule]) -> Added:
        new = [rule for rule in rules if rule.label not in self.rules or self.rules[rule.label].before < rule.before]
        self.rules |= {rule.label: rule for rule in new}
        if new or not self.epoch:
            self.epoch = max(self.epoch + 1, self.now())
            for process, changed in self.ears if not self.deaf else ():
                self.world.after(self.world.latency(), lambda to=process, tell=changed: to.post(tell))
        return Added(self.epoch, self.now(), tuple(new))

    def read(self, version: str) -> Reading:
        self.polls += 1
        mine = f"{self.epoch}/{len(self.rules)}"
        if not self.epoch:
            return Reading("", self.now())
        if mine == version:
            return Reading(mine, self.now())
        return Reading(mine, self.now(), tuple(self.rules.values()), dict(self.swept))

    def empty(self) -> None:
        self.rules, self.epoch, self.swept = {}, 0, {}


class Redis:
    """One process' way to it."""

    def __init__(self, shared: Shared, process: Process) -> None:
        self._shared = shared
        self._process = process

    async def _ask(self, step: Callable[[], T]) -> T:
        def served() -> T:
            if not self._shared.redis_up:
                raise TierError("Redis is away.")
            return step()

        return await self._process.ask(served)

    async def add(self, kind: Any, labels: Any, *, older_than: int = 0, tag: str = "") -> Added:
        def step() -> Added:
            at = self._shared.now()
            return self._shared.add([Rule(kind, label, at - older_than, at) for label in labels])

        return await self._ask(step)

    async def merge(self, rules: Any) -> Added:
        return await self._ask(lambda: self._shared.add(list(rules)))

    async def read(self, version: str) -> Reading:
        return await self._ask(lambda: self._shared.read(version))

    async def note(self, tags: Any) -> None:
        await self._ask(lambda: None)

    async def retire(self, rules: Any) -> None:
        await self._ask(lambda: [self._shared.rules.pop(rule.label, None) for rule in rules])

    def watch(self, changed: Callable[[], None]) -> None:
        self._shared.ears.append((self._process, changed))

    async def aclose(self) -> None: ...


class Mirror:
    """One process' way to L3."""

    def __init__(self, shared: Shared, process: Process) -> None:
        self._shared = shared
        self._process = process

    async def _ask(self, step: Callable[[], T]) -> T:
        def served() -> T:
            if not self._shared.l3_up:
                raise TierError("L3 is away.")
            return step()

        return await self._process.ask(served)

    async def read(self) -> frozenset[Rule]:
        return await self._ask(lambda: self._shared.mirror)

    async def write(self, rules: Any, *, without: Any = ()) -> None:
        def step() -> None:
            self._shared.mirror = self._shared.mirror.union(rules).difference(without)

        await self._ask(step)


class Party:
    """Some processes, each with its RuleSync, over one Redis and one L3."""

    def __init__(self, count: int, seed: int = 0, *, has_l3: bool = True) -> None:
        self.world = World(seed)
        self.shared = Shared(self.world)
        self._numbers = itertools.count()
        self._has_l3 = has_l3
        self.members = [self.join() for _ in range(count)]

    def join(self) -> tuple[Process, RuleSync]:
        process = Process(self.world, f"router{next(self._numbers)}")
        clock = SharedClock(wall=lambda: EPOCH + self.world.now, monotonic=process.loop.time)
        mirror: Any = Mirror(self.shared, process) if self._has_l3 else None
        redis: Any = Redis(self.shared, process)
        sync = RuleSync(RuleBook(Labels(b"s"), clock=clock), redis, mirror, monotonic=process.loop.time)
        process.post(sync.start)
        return process, sync

    def invalidate(self, member: int, label: str, older_than: float = 0.0) -> list[Any]:
        process, sync = self.members[member]
        told: list[Any] = []

        async def add() -> None:
            try:
                told.extend(await sync.add("tag", [label], older_than=older_than))
            except Unavailable as error:
                told.append(error)

        process.post(lambda: process.spawn(add()))
        return told

    def run(self, seconds: float) -> None:
        self.world.run(self.world.now + seconds)
        assert not self.world.errors, self.world.errors

    def known(self) -> list[set[str]]:
        return [{rule.label for rule in sync.book} for _, sync in self.members]


@pytest.mark.parametrize("deaf", [False, True])
def test_everybody_knows_within_a_second(deaf: bool) -> None:
    """With every message lost too, all know a rule one second after it was acknowledged."""
    party = Party(3)
    party.run(1.0)
    party.shared.deaf = deaf
    told = party.invalidate(0, "a")
    party.world.run(party.world.now + 5, lambda: bool(told))
    party.run(1.0)
    assert party.known() == [{"a"}] * 3
    party.world.close()


def test_a_message_needs_no_poll() -> None:
    """A heard rule is known sooner than the next look would come."""
    party = Party(2)
    party.run(1.1)
    told = party.invalidate(0, "a")
    party.world.run(party.world.now + 5, lambda: bool(told))
    at = party.world.now
    party.world.run(at + 5, lambda: party.known()[1] == {"a"})
    assert party.world.now - at < POLL_SECONDS
    party.world.close()


def test_a_poll_is_one_script_twice_a_second() -> None:
    """While nothing changes a process asks Redis at most 1/POLL_SECONDS times a second."""
    party = Party(1)
    party.run(1.0)
    before = party.shared.polls
    party.run(10.0)
    assert 10 <= party.shared.polls - before <= 10 / POLL_SECONDS
    party.world.close()


def test_an_emptied_redis_is_told_again() -> None:
    """After a flush the rules come back, from memory or, with all processes new, from the mirror."""
    party = Party(2)
    party.invalidate(0, "a")
    party.run(1.0)
    party.shared.empty()
    party.run(2.0)
    assert set(party.shared.rules) == {"a"}
    for process, _ in party.members:
        process.kill()
    party.shared.empty()
    party.members = [party.join()]
    party.run(2.0)
    assert party.known() == [{"a"}]
    assert set(party.shared.rules) == {"a"}
    party.world.close()


def test_without_redis_rules_go_through_l3() -> None:
    """While Redis is away a rule is acknowledged once L3 has it, known to all a second later, to Redis afterwards."""
    party = Party(2)
    party.run(1.0)
    party.shared.redis_up = False
    told = party.invalidate(0, "a")
    party.world.run(party.world.now + 5, lambda: bool(told))
    assert isinstance(told[0], Rule)
    party.run(1.0)
    assert party.known() == [{"a"}] * 2
    party.shared.redis_up = True
    party.run(1.0)
    assert set(party.shared.rules) == {"a"}
    party.world.close()


def test_recorded_nowhere_is_unavailable() -> None:
    """With neither store the caller is told to try again, and no process acts on it."""
    party = Party(2)
    party.run(1.0)
    party.shared.redis_up = party.shared.l3_up = False
    (told,) = [party.invalidate(0, "a")]
    party.run(5.0)
    assert isinstance(told[0], Unavailable)
    assert party.known() == [set(), set()]
    party.world.close()


def test_nobody_believes_a_tier_before_the_rules_are_known() -> None:
    """With both stores away at the start a book is not ready; it is as soon as either can be read."""
    party = Party(0)
    party.shared.redis_up = party.shared.l3_up = False
    process, sync = party.join()
    ready: list[bool] = []

    async def look() -> None:
        ready.append(await sync.book.ready())

    process.post(lambda: process.spawn(look()))
    party.run(1.0)
    party.shared.l3_up = True
    party.run(1.0)
    process.post(lambda: process.spawn(look()))
    party.run(1.0)
    assert ready == [False, True]
    party.world.close()


def test_a_retired_rule_does_not_come_back() -> None:
    """A rule of more than a day that Redis has no more is forgotten by all, a younger one is told to Redis again."""
    party = Party(2)
    party.invalidate(0, "old")
    party.run(KEPT_SECONDS - 10)
    party.invalidate(0, "young")
    party.run(20.0)
    for label in ("old", "young"):
        rule = party.shared.rules.pop(label)
        party.shared.mirror -= {rule}
    party.shared.epoch += 1
    party.run(2.0)
    assert set(party.shared.rules) == {"young"}
    assert party.known() == [{"young"}] * 2
    party.world.close()


deeds = st.lists(
    st.tuples(
        st.sampled_from(("add", "add", "redis away", "redis back", "empty", "l3 away", "l3 back", "deaf", "kill")),
        st.integers(0, 2),
        st.floats(0.0, 2.0),
    ),
    max_size=12,
)


@settings(max_examples=60)
@given(deeds, st.integers(0, 1000))
def test_whatever_was_acknowledged_is_known_to_all_in_the_end(story: list[tuple[str, int, float]], seed: int) -> None:
    """Under outages, flushes, deafness and deaths of all but one process, every acknowledged rule reaches everybody."""
    party = Party(3, seed)
    told: dict[str, list[Any]] = {}
    for number, (deed, who, pause) in enumerate(story):
        shared = party.shared
        if deed == "add":
            told[str(number)] = party.invalidate(who, str(number))
        elif deed == "empty":
            shared.empty()
        elif deed == "kill":
            party.run(1.0)  # what it was just told it still tells
            if shared.redis_up and shared.l3_up:
                party.run(2.0)
                party.members[who][0].kill()
                party.members[who] = party.join()
        elif deed == "deaf":
            shared.deaf = True
        else:
            store, state = deed.split()
            setattr(shared, f"{store}_up", state == "back")
        party.run(pause)
    party.run(5.0)
    party.shared.redis_up = party.shared.l3_up = True
    party.run(3.0)
    acknowledged = {label for label, answer in told.items() if answer and isinstance(answer[0], Rule)}
    assert all(acknowledged <= known for known in party.known())
    assert acknowledged <= set(party.shared.rules)
    party.world.close()
