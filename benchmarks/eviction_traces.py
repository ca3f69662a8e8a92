"""The traces of `benchmarks/eviction.py`: a real one out of a file, and made ones that tempt policies into mistakes."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

NOT_IN_THE_KEY = ("gmt_create", "exec_time_seconds")
FEWEST_OBJECTS = 4_000
"""Half a percent of these is twenty objects; S3-FIFO's small queue, a tenth of the store, has no use for fewer."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order: the number of the object from 1 on, and the seconds that computing it took."""

    name: str
    objects: list[int]
    seconds: list[float]

    def __post_init__(self) -> None:
        if self.distinct < FEWEST_OBJECTS:
            raise ValueError(f"{self.name}: {self.distinct} different objects, {FEWEST_OBJECTS} are the least")

    @property
    def distinct(self) -> int:
        return len(set(self.objects))

    @property
    def next_uses(self) -> list[int]:
        """For every request the place of the object's next one, a number beyond all places when there is none."""
        after, following = [0] * len(self.objects), {}
        for place in reversed(range(len(self.objects))):
            after[place] = following.get(self.objects[place], 2**63 - 1)
            following[self.objects[place]] = place
        return after


def read_trace(file: Path) -> Trace:
    """Read a CSV in the form of Alibaba's cluster-trace-v2026-GenAI: the key is all columns but time and seconds.

    Raises ValueError for a file of another form.
    """
    numbers: dict[tuple[str, ...], int] = {}
    objects, seconds = [], []
    with file.open(newline="") as lines:
        rows = csv.DictReader(lines)
        if not set(NOT_IN_THE_KEY) <= set(rows.fieldnames or ()):
            raise ValueError(f"{file} has no columns {' and '.join(NOT_IN_THE_KEY)}")
        for row in sorted(rows, key=lambda row: row["gmt_create"]):
            key = tuple(value for column, value in row.items() if column not in NOT_IN_THE_KEY)
            objects.append(numbers.setdefault(key, len(numbers) + 1))
            seconds.append(float(row["exec_time_seconds"]))
    return Trace("trace", objects, seconds)


def made_traces(quick: bool, seed: int) -> list[Trace]:
    """Return the made traces; an object's seconds are log-normal, the same at every request."""
    requests = 30_000 if quick else 100_000
    objects = requests // 4
    return [_made(name, make(random.Random(seed), objects), requests, seed) for name, make in MAKERS.items()]


def _made(name: str, next_object: Callable[[], int], requests: int, seed: int) -> Trace:
    rng = random.Random(f"{seed} {name}")
    objects = list(islice(iter(next_object, 0), requests))
    costs: dict[int, float] = {}
    seconds = [costs.setdefault(each, rng.lognormvariate(3, 0.8)) for each in objects]
    return Trace(name, objects, seconds)


def zipf(rng: random.Random, objects: int) -> Callable[[], int]:
    """Popularity falls as rank to the power 0.9, and never changes."""
    cumulative, total = [], 0.0
    for rank in range(1, objects + 1):
        total += rank**-0.9
        cumulative.append(total)
    numbers = range(1, objects + 1)
    return lambda: rng.choices(numbers, cum_weights=cumulative)[0]


def scan(rng: random.Random, objects: int) -> Callable[[], int]:
    """Zipf, and after every 2,000 requests of it 1,000 for objects that are never asked for again."""
    popular, count, fresh = zipf(rng, objects), 0, objects

    def following() -> int:
        nonlocal count, fresh
        count += 1
        if count % 3_000 < 2_000:
            return popular()
        fresh += 1
        return fresh

    return following


def loop(rng: random.Random, objects: int) -> Callable[[], int]:
    """All objects in turn, again and again: what was used longest ago is wanted soonest."""
    at = 0

    def following() -> int:
        nonlocal at
        at = at % objects + 1
        return at

    return following


def bursts(rng: random.Random, objects: int) -> Callable[[], int]:
    """An object is asked for about five times in quick succession among some hundred others, then never again."""
    alive, fresh = [], 0

    def following() -> int:
        nonlocal fresh
        while len(alive) < objects // 100:
            fresh += 1
            alive.append(fresh)
        place = rng.randrange(len(alive))
        return alive.pop(place) if rng.random() < 0.2 else alive[place]

    return following


MAKERS: dict[str, Callable[[random.Random, int], Callable[[], int]]] = {
    "Zipf": zipf,
    "scan": scan,
    "loop": loop,
    "bursts": bursts,
}
