"""What the step engine's policy does on many GPUs: the real BatchScheduler and PassTimes under a counted clock.

Nothing is decided here that the product decides: `due`, `next_batch` and `limit` are the engine's. What no replica has
room for waits in one queue. The step engine's next job goes to the emptiest of those that `deployments.placement` asks,
the others' to the emptier of two chosen by chance, which is Ray Serve's rule (`by_serves_rule`). A replica takes
two batches; sequential ones take one job, so that nobody waits behind a long one while a GPU is idle. Whole-request
batches have the same limits of jobs and rows and are formed when the GPU is free (Serve closes one when its time is up,
even while another runs); members that are done cost nothing any more. No engine decodes, and no network takes time.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, TypeVar

from engine_traffic import (
    ENGINES,
    SEQUENTIAL,
    STEP_ENGINE,
    WHOLE_REQUESTS,
    Arrival,
    Comparison,
    Kind,
    Latencies,
    Served,
    kinds,
    trace,
)

from deployments.placement import PROBED
from serve_app.core import Priority
from serve_app.engine.pass_times import PassTimes, Shape
from serve_app.engine.scheduler import BatchScheduler, due

GPUS = 64
MAX_JOBS = 4
BATCHES_TAKEN = 2
SERVES_CHOICES = 2
SHAPES: tuple[Shape, ...] = ((48, 13, 30, 52), (48, 5, 16, 28))
"""Latents of 832x480, 49 frames, and of 448x256, 17 frames, in the autoencoder of Wan2.2-TI2V-5B."""


@dataclass(frozen=True, slots=True)
class Device:
    """What a pass takes: a fixed part, and a part per token of all its rows that cannot fall below a full device.

    An assumption: 5e9 weights are 1e10 FLOPs a token, 25 microseconds at 400 TFLOP/s, and 2,048 tokens fill the card.
    So a row of the larger shape fills it, and so do four of the smaller; more rows than that gain nearly nothing.
    """

    fixed: float = 0.005
    per_token: float = 25e-6
    full: int = 2048

    def seconds(self, shape: Shape, rows: int) -> float:
        tokens = rows * math.prod(shape[1:]) // 4  # patches of 1x2x2
        return self.fixed + self.per_token * max(tokens, self.full)

    def pace(self) -> PassTimes:
        """Return what the engine would find by measuring this device."""
        pace = PassTimes(2 * MAX_JOBS)
        for shape in SHAPES:
            pace.measured(shape, {rows: self.seconds(shape, rows) for rows in (1, 2, 4, 8)})
        return pace


class Clock:
    """Time that passes only when there is nothing left to do in it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._coming: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, when: float, then: Callable[[], None]) -> None:
        heapq.heappush(self._coming, (when, next(self._order), then))

    def run(self) -> None:
        """Let time pass until nothing more is to come."""
        while self._coming:
            self.now, _, then = heapq.heappop(self._coming)
            then()


@dataclass(slots=True)
class Running:
    """A job on its way."""

    arrival: Arrival
    steps: list[float] = field(default_factory=list)


class Request(Protocol):
    """Something that asks for a kind of job."""

    @property
    def kind(self) -> Kind: ...


R = TypeVar("R", bound=Request)


def whole_batch(waiting: Iterable[R], max_jobs: int, max_rows: Callable[[Shape], int]) -> list[R]:
    """Return the first that waits and the next ones of its shape that fit beside it, in order."""
    batch: list[R] = []
    rows = 0
    for request in waiting:
        kind = request.kind
        fits = not batch or (kind.shape == batch[0].kind.shape and rows + kind.rows <= max_rows(kind.shape))
        if fits and len(batch) < max_jobs:
            batch.append(request)
            rows += kind.rows
    return batch


class Replica(Protocol):
    """A GPU and what it has taken on."""

    def __len__(self) -> int: ...

    def take(self, arrival: Arrival) -> None: ...


@dataclass(frozen=True, slots=True)
class Placement:
    """How jobs come to replicas: each takes up to `room`, the next one goes to the emptier of `choices` with room."""

    room: int = BATCHES_TAKEN * MAX_JOBS
    choices: int = SERVES_CHOICES
    by_due: bool = True

    def by_serves_rule(self) -> Placement:
        """Return this placement with a choice of two."""
        return replace(self, choices=SERVES_CHOICES)


PLACEMENTS = {
    STEP_ENGINE: Placement(choices=PROBED),
    SEQUENTIAL: Placement(1, by_due=False),
    WHOLE_REQUESTS: Placement(by_due=False),
}


class Cluster:
    """Replicas, and the queue of what they have not taken yet."""

    def __init__(
        self, device: Device, gpus: int, seed: int, placement: Placement, replica: Callable[[Cluster], Replica]
    ) -> None:
        self.clock = Clock()
        self.device = device
        self.pace = device.pace()
        self.served: list[Served] = []
        self._placement = placement
        self._chance = random.Random(seed)
        self._replicas = [replica(self) for _ in range(gpus)]
        self._waiting: list[tuple[float, int, Arrival]] = []

    def due(self, arrival: Arrival) -> float:
        """Return when a job is due, wherever it waits."""
        kind = arrival.kind
        return due(arrival.at, kind.steps * self.pace.seconds(kind.shape, kind.rows), Priority.INTERACTIVE)

    def arrive(self, arrival: Arrival) -> None:
        order = self.due(arrival) if self._placement.by_due else 0.0
        heapq.heappush(self._waiting, (order, arrival.number, arrival))
        self.dispatch()

    def dispatch(self) -> None:
        """Give what waits to replicas that have room."""
        while self._waiting:
            room = [replica for replica in self._replicas if len(replica) < self._placement.room]
            if not room:
                return
            choices = self._chance.sample(room, min(self._placement.choices, len(room)))
            min(choices, key=len).take(heapq.heappop(self._waiting)[2])

    def answer(self, arrival: Arrival, steps: Sequence[float]) -> None:
        self.served.append(Served(arrival, steps, self.clock.now))


class StepReplica:
    """A GPU under the step engine: a pass, then whoever is due."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._scheduler = BatchScheduler(
            MAX_JOBS, cluster.pace.limit, cluster.pace.measured_seconds, cluster.pace.seconds
        )
        self._jobs: dict[str, Running] = {}
        self._busy = False

    def __len__(self) -> int:
        return len(self._jobs)

    def take(self, arrival: Arrival) -> None:
        """Begin a job, as `StepEngine.render` does."""
        kind, job_id = arrival.kind, str(arrival.number)
        self._jobs[job_id] = Running(arrival)
        self._scheduler.add(job_id, kind.shape, kind.steps, asked_at=arrival.at, rows=kind.rows)
        if not self._busy:
            self._busy = True
            self._cluster.clock.at(self._cluster.clock.now, self._begin)

    def _begin(self) -> None:
        batch = self._scheduler.next_batch(self._cluster.clock.now)
        self._busy = bool(batch)
        if batch:
            kinds_in = [self._jobs[job_id].arrival.kind for job_id in batch]
            seconds = self._cluster.device.seconds(kinds_in[0].shape, sum(kind.rows for kind in kinds_in))
            self._cluster.clock.at(self._cluster.clock.now + seconds, lambda: self._end(batch))

    def _end(self, batch: Sequence[str]) -> None:
        now = self._cluster.clock.now
        for job_id in batch:
            job = self._jobs[job_id]
            job.steps.append(now)
            if self._scheduler.advance(job_id):
                del self._jobs[job_id]
                self._cluster.answer(job.arrival, job.steps)
        self._cluster.dispatch()
        self._begin()


class WholeReplica:
    """A GPU that keeps a batch until its longest job ends and answers all then; of one job: sequential."""

    def __init__(self, cluster: Cluster, max_jobs: int) -> None:
        self._cluster = cluster
        self._max_jobs = max_jobs
        self._waiting: deque[Arrival] = deque()
        self._running: Sequence[Arrival] = ()
        self._busy = False

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def take(self, arrival: Arrival) -> None:
        self._waiting.append(arrival)
        if not self._busy:
            self._busy = True
            self._cluster.clock.at(self._cluster.clock.now, self._begin)

    def _begin(self) -> None:
        batch = self._running = whole_batch(self._waiting, self._max_jobs, self._cluster.pace.limit)
        self._busy = bool(batch)
        if batch:
            for arrival in batch:
                self._waiting.remove(arrival)
            passes = self._passes([arrival.kind for arrival in batch])
            self._cluster.clock.at(passes[-1], lambda: self._end(passes))

    def _passes(self, batch: Sequence[Kind]) -> list[float]:
        """Return when each of the batch's passes ends."""
        taken = (
            self._cluster.device.seconds(batch[0].shape, sum(kind.rows for kind in batch if kind.steps > step))
            for step in range(max(kind.steps for kind in batch))
        )
        return list(itertools.accumulate(taken, initial=self._cluster.clock.now))[1:]

    def _end(self, passes: Sequence[float]) -> None:
        for arrival in self._running:
            self._cluster.answer(arrival, passes[: arrival.kind.steps])
        self._running = ()
        self._cluster.dispatch()
        self._begin()


def play(
    engine: str,
    arrivals: Sequence[Arrival],
    device: Device,
    gpus: int = GPUS,
    seed: int = 0,
    placement: Placement | None = None,
) -> list[Served]:
    """Return what `engine` made of a trace; the same arguments give the same answer."""
    max_jobs = 1 if engine == SEQUENTIAL else MAX_JOBS
    replica = StepReplica if engine == STEP_ENGINE else partial(WholeReplica, max_jobs=max_jobs)
    cluster = Cluster(device, gpus, seed, placement or PLACEMENTS[engine], replica)
    for arrival in arrivals:
        cluster.clock.at(arrival.at, lambda arrival=arrival: cluster.arrive(arrival))
    cluster.clock.run()
    return cluster.served


@functools.cache
def capacity(device: Device) -> float:
    """Return the most jobs per second that any engine gets out of one device that is never idle."""
    mix = kinds(SHAPES)
    arrivals = trace(mix, 50 * len(mix), math.inf, 0)
    return max(Latencies.of(play(engine, arrivals, device, 1)).to_the_end for engine in ENGINES)


def loaded(load: float, count: int, device: Device, gpus: int, seed: int) -> list[Arrival]:
    """Return `count` jobs that come at `load` times what all GPUs can do."""
    return trace(kinds(SHAPES), count, load * gpus * capacity(device), seed)


def compare(load: float, count: int, device: Device | None = None, gpus: int = GPUS, seed: int = 0) -> Comparison:
    """Return what the three make of the jobs that `loaded` gives."""
    device = device or Device()
    arrivals = loaded(load, count, device, gpus, seed)
    return {engine: Latencies.of(play(engine, arrivals, device, gpus, seed)) for engine in ENGINES}


def by_serves_rule(load: float, count: int, device: Device | None = None, gpus: int = GPUS, seed: int = 0) -> float:
    """Return the step engine's mean latency in `compare`, were its jobs placed as the others' are."""
    device = device or Device()
    placement = PLACEMENTS[STEP_ENGINE].by_serves_rule()
    return Latencies.of(play(STEP_ENGINE, loaded(load, count, device, gpus, seed), device, gpus, seed, placement)).mean
