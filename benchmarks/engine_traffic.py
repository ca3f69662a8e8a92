"""The traffic that engines are compared under: who arrives when, and what became of them.

A trace is made once and played to every engine. Arrivals are Poisson: given how many there are, they are uniform over
the time. Every kind of job comes equally often, in random order, so that the load is the one that was asked for.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serve_app.engine.pass_times import Shape

STEPS = (4, 8, 16, 50)
SHORT, LONG = min(STEPS), max(STEPS)
LOADS = (0.5, 0.8, 1.2)
STEP_ENGINE, SEQUENTIAL, WHOLE_REQUESTS = "step engine", "sequential", "whole requests"
ENGINES = (STEP_ENGINE, SEQUENTIAL, WHOLE_REQUESTS)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a job asks for; guidance takes a second row of every pass."""

    steps: int
    shape: Shape
    guided: bool

    @property
    def rows(self) -> int:
        return 2 if self.guided else 1

    @property
    def work(self) -> int:
        """What one step is, in rows times their volume."""
        return self.rows * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A job that comes `at` seconds into the trace; `number` is its place in it."""

    number: int
    at: float
    kind: Kind


@dataclass(frozen=True, slots=True)
class Served:
    """When each of a job's steps was done and when it was answered, seconds into the trace."""

    arrival: Arrival
    steps: Sequence[float]
    answered: float

    @property
    def first_step(self) -> float:
        return self.steps[0]

    @property
    def latency(self) -> float:
        return self.answered - self.arrival.at


@dataclass(frozen=True, slots=True)
class Latencies:
    """What one engine made of one trace, in seconds, and two rates in jobs per second.

    throughput: steps done while jobs came, weighed by their work, in jobs of the trace's average. It favours nobody for
    whom he serves first, and the last job of a trace, which may be long and alone, has no part in it.
    to_the_end: all jobs, by the time from the first arrival to the last answer.
    """

    mean: float
    p50: float
    p95: float
    first_step_p50: float
    first_step_p95: float
    short_mean: float
    short_p50: float
    short_p95: float
    throughput: float
    to_the_end: float

    @classmethod
    def of(cls, served: Sequence[Served]) -> Latencies:
        everybody = [each.latency for each in served]
        short = [each.latency for each in served if each.arrival.kind.steps == SHORT]
        first_steps = [each.first_step - each.arrival.at for each in served]
        began, last = (choose(each.arrival.at for each in served) for choose in (min, max))
        done = sum(each.arrival.kind.work * bisect.bisect_right(each.steps, last) for each in served)
        average = statistics.mean(each.arrival.kind.work * len(each.steps) for each in served)
        return cls(
            mean=statistics.mean(everybody),
            p50=percentile(everybody, 50),
            p95=percentile(everybody, 95),
            first_step_p50=percentile(first_steps, 50),
            first_step_p95=percentile(first_steps, 95),
            short_mean=statistics.mean(short),
            short_p50=percentile(short, 50),
            short_p95=percentile(short, 95),
            throughput=done / average / (last - began) if last > began else math.nan,
            to_the_end=len(served) / (max(each.answered for each in served) - began),
        )


Comparison = Mapping[str, Latencies]
"""By engine, one trace."""


def kinds(shapes: Sequence[Shape], steps: Sequence[int] = STEPS) -> list[Kind]:
    """Return every combination of steps, shape and guidance."""
    return [Kind(*each) for each in itertools.product(steps, shapes, (False, True))]


def trace(of: Sequence[Kind], count: int, per_second: float, seed: int) -> list[Arrival]:
    """Return about `count` Poisson arrivals, whole rounds of the kinds, that come `per_second` on average."""
    chance = random.Random(seed)
    jobs = list(of) * max(1, round(count / len(of)))
    chance.shuffle(jobs)
    times = sorted(chance.uniform(0, len(jobs) / per_second) for _ in jobs)
    return [Arrival(number, at, kind) for number, (at, kind) in enumerate(zip(times, jobs, strict=True))]


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile, between neighbours in proportion."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
