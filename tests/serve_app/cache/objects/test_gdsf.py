"""The eviction policy against a naive one, rule by rule."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.cache.objects.gdsf import GHOSTS_PER_VALUE, Gdsf, worth


@dataclass
class Held:
    """What the naive policy knows of a value."""

    size: int
    cost: float
    frequency: float
    age: float
    turn: int

    @property
    def worth(self) -> float:
        return worth(self.frequency, self.cost, self.size)

    @property
    def rank(self) -> tuple[float, int]:
        return self.age + self.worth, self.turn


class Naive:
    """The policy without a heap: every eviction looks at everything."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held: dict[str, Held] = {}
        self.ghosts: dict[str, float] = {}
        self.age, self.turn = 0.0, 0

    def use(self, name: str) -> None:
        self.turn += 1
        value = self.held[name]
        self.held[name] = Held(value.size, value.cost, value.frequency + 1, self.age, self.turn)

    def add(self, name: str, size: int, cost: float) -> list[tuple[str, Held]]:
        gone = []
        while sum(value.size for value in self.held.values()) + size > self.max_bytes:
            victim = min(self.held, key=lambda each: self.held[each].rank)
            gone.append((victim, self.held.pop(victim)))
            self.age = gone[-1][1].rank[0]
            self.ghosts[victim] = gone[-1][1].frequency
            while len(self.ghosts) > GHOSTS_PER_VALUE * (len(self.held) + 1):
                del self.ghosts[next(iter(self.ghosts))]
        self.turn += 1
        self.held[name] = Held(size, cost, self.ghosts.pop(name, 0) + 1, self.age, self.turn)
        return gone


Steps = st.lists(
    st.tuples(st.sampled_from("abcdefghijkl"), st.integers(0, 60), st.integers(0, 1000)), min_size=20, max_size=120
)


@given(Steps)
def test_it_does_what_the_naive_policy_does(steps: list[tuple[str, int, int]]) -> None:
    """The heap lets the same names go in the same order as looking at everything, and never exceeds the bound."""
    gdsf, naive = Gdsf(100), Naive(100)
    for name, size, cost in steps:
        assert (name in gdsf) == (name in naive.held)
        if gdsf.use(name):
            naive.use(name)
        else:
            assert gdsf.add(name, size, cost) == [gone for gone, _ in naive.add(name, size, cost)]
        gdsf.check_integrity()
        assert gdsf.age == naive.age
        assert len(gdsf) == len(naive.held)


@given(Steps)
def test_of_equal_age_the_worthless_go_first(steps: list[tuple[str, int, int]]) -> None:
    """Nothing goes that is worth more than what stays and was used no later."""
    gdsf, naive = Gdsf(100), Naive(100)
    for name, size, cost in steps:
        if gdsf.use(name):
            naive.use(name)
            continue
        before = dict(naive.held)
        gone = set(gdsf.add(name, size, cost))
        naive.add(name, size, cost)
        stay = [value for each, value in before.items() if each not in gone]
        for victim in (before[each] for each in gone):
            assert not [value for value in stay if value.age <= victim.age and value.worth < victim.worth]


@pytest.mark.parametrize("power_of_two", [-10, 10])
def test_only_proportions_count(power_of_two: int) -> None:
    """Whether seconds or milliseconds are told changes no decision."""
    rng = random.Random(1)
    one, other = Gdsf(1000), Gdsf(1000)
    for _ in range(2000):
        name = str(rng.randrange(60))
        if one.use(name):
            other.use(name)
            continue
        size, cost = rng.randrange(1, 200), rng.lognormvariate(0, 1)
        assert one.add(name, size, cost) == other.add(name, size, cost * 2.0**power_of_two)


def test_what_was_dear_ages() -> None:
    """A value that saved much but is used no more goes after enough cheap ones that are."""
    gdsf = Gdsf(2)
    gdsf.add("dear", 1, 1000.0)
    for round_ in range(100_000):
        if "dear" in gdsf.add(f"cheap {round_}", 1, 10.0):
            break
    assert 10 < round_ < 1000


def test_an_evicted_name_is_remembered() -> None:
    """What comes back has its earlier uses, until as many others were evicted as are remembered."""
    gdsf = Gdsf(10)
    gdsf.add("one", 1, 1.0)
    gdsf.use("one")
    gdsf.evict_to(0)
    assert (gdsf.frequency("one"), "one" in gdsf) == (2, False)
    gdsf.add("one", 1, 1.0)
    assert gdsf.frequency("one") == 3
    gdsf.evict_to(0)
    for number in range(int(GHOSTS_PER_VALUE) + 1):
        gdsf.add(str(number), 1, 1.0)
        gdsf.evict_to(0)
    assert gdsf.frequency("one") == 0


def test_what_is_removed_is_gone() -> None:
    """A removed name frees its bytes, leaves no ghost, and its void place in the heap evicts nobody."""
    gdsf = Gdsf(10)
    gdsf.add("one", 5, 0.1)
    gdsf.add("two", 5, 9.0)
    assert gdsf.remove("one")
    assert not gdsf.remove("one")
    assert (gdsf.bytes, gdsf.frequency("one")) == (5, 0)
    assert gdsf.add("three", 5, 1.0) == []
    assert gdsf.add("four", 5, 1.0) == ["three"]


def test_the_heap_stays_in_proportion() -> None:
    """Ten thousand uses of one name leave a heap of no more than the values want."""
    gdsf = Gdsf(10)
    gdsf.add("one", 1, 1.0)
    for _ in range(10_000):
        gdsf.use("one")
    gdsf.check_integrity()


@pytest.mark.parametrize(("name", "size", "told"), [("held", 1, "held"), ("large", 11, "bound")])
def test_what_cannot_be_added(name: str, size: int, told: str) -> None:
    """A name that is there and a value beyond the bound are the caller's mistakes."""
    gdsf = Gdsf(10)
    gdsf.add("held", 1, 1.0)
    with pytest.raises(ValueError, match=told):
        gdsf.add(name, size, 1.0)


def test_an_empty_value_costs_no_division() -> None:
    """A value of no bytes is worth what one of one byte is."""
    assert worth(1, 2.0, 0) == worth(1, 2.0, 1)
