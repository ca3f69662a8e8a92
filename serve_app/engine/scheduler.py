"""Which jobs advance one denoising step together: the batching policy, pure Python without torch, threads or a clock.

Jobs of one shape can share a forward pass whatever step each is at. Every job has a time by which it is `due`, fixed
when it comes, and the earliest due goes first: its shape gets the pass, and the jobs of that shape that are due next
fill it up. So a short job is not stuck behind a long one (it is due sooner), urgent work takes the next step of what
runs already, a head of another shape holds nobody up, and nothing starves, because newcomers are due ever later. What
gives way keeps its place and its steps. Warm-up jobs share a pass with their own kind, unless they are overdue.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from serve_app.core import Priority

Shape = TypeVar("Shape", bound=Hashable)

STRETCH = 16.0
"""A job is due after so many times what it would take alone: long ones can wait longer for the same slowdown.

With 8, after 40 s of overload, long jobs that were overdue held up new short ones (`benchmarks/engine_simulation.py`).
"""
PATIENCE: Mapping[Priority, float] = {Priority.INTERACTIVE: 0.0, Priority.BATCH: 60.0, Priority.WARM_UP: 3600.0}
"""By how many seconds a job of each priority is due later; after that it is before all newcomers."""

_LOOK_AHEAD = 16  # jobs looked at per place left; what needs two rows may be passed by one that needs one


def due(now: float, expected_seconds: float, priority: Priority, deadline: float | None = None) -> float:
    """Return when a job that comes `now` is due, on the clock of `now` and `deadline`."""
    usual = now + STRETCH * expected_seconds + PATIENCE[priority]
    return usual if deadline is None else min(usual, deadline)


@dataclass(slots=True)
class _Job(Generic[Shape]):
    shape: Shape
    rank: tuple[float, int, str]
    rows: int
    warm_up: bool
    steps_left: int


@dataclass(frozen=True, slots=True)
class Backlog:
    """Work of one shape: jobs, and the steps still to do times the rows each takes."""

    jobs: int
    row_steps: int


class BatchScheduler(Generic[Shape]):
    """Jobs waiting and running. Not thread-safe: one owner calls it between passes.

    max_jobs: most jobs in a pass. max_rows: most rows of a shape in a pass (a guided job takes two), asked each time.
    """

    def __init__(self, max_jobs: int, max_rows: Callable[[Shape], int] = lambda shape: 1 << 30) -> None:
        if max_jobs < 1:
            raise ValueError("max_jobs must be at least 1")
        self.max_jobs = max_jobs
        self._max_rows = max_rows
        self._jobs: dict[str, _Job[Shape]] = {}
        self._waiting: dict[Shape, list[tuple[float, int, str]]] = {}
        self._row_steps: dict[Shape, int] = {}
        self._came = 0

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def backlog(self) -> Mapping[Shape, Backlog]:
        """What is to be done, by shape."""
        return {shape: Backlog(len(ranks), self._row_steps[shape]) for shape, ranks in self._waiting.items()}

    def add(
        self, job_id: str, shape: Shape, num_steps: int, *, due: float = 0.0, rows: int = 1, warm_up: bool = False
    ) -> None:
        """Queue a job of `num_steps` steps; ValueError when the id is taken or there is nothing to do."""
        if job_id in self._jobs:
            raise ValueError(f"job {job_id} is queued already")
        if num_steps < 1 or rows < 1:
            raise ValueError("num_steps and rows must be at least 1")
        self._came += 1
        job = self._jobs[job_id] = _Job(shape, (due, self._came, job_id), rows, warm_up, num_steps)
        bisect.insort(self._waiting.setdefault(shape, []), job.rank)
        self._row_steps[shape] = self._row_steps.get(shape, 0) + num_steps * rows

    def remove(self, job_id: str) -> bool:
        """Drop a job, waiting or running; False when it is not here (any more)."""
        job = self._jobs.pop(job_id, None)
        if job is None:
            return False
        ranks = self._waiting[job.shape]
        del ranks[bisect.bisect_left(ranks, job.rank)]
        self._row_steps[job.shape] -= job.steps_left * job.rows
        if not ranks:
            del self._waiting[job.shape], self._row_steps[job.shape]
        return True

    def promote(self, job_id: str, due: float, *, warm_up: bool = False) -> bool:
        """Make a job due no later than `due`; False when it is not here. It keeps its steps."""
        job = self._jobs.get(job_id)
        if job is None:
            return False
        job.warm_up &= warm_up
        if due < job.rank[0]:
            ranks = self._waiting[job.shape]
            del ranks[bisect.bisect_left(ranks, job.rank)]
            job.rank = (due, *job.rank[1:])
            bisect.insort(ranks, job.rank)
        return True

    def next_batch(self) -> tuple[str, ...]:
        """Return the jobs that advance together now, first due first; empty when idle."""
        if not self._waiting:
            return ()
        shape = min(self._waiting, key=lambda shape: self._waiting[shape][0])
        return tuple(self._filling(shape))

    def _filling(self, shape: Shape) -> Iterator[str]:
        """Yield the shape's first job and those after it that fit beside it."""
        ranks = self._waiting[shape]
        free_jobs, free_rows = self.max_jobs, self._max_rows(shape)
        with_warm_ups = self._jobs[ranks[0][2]].warm_up
        for place, (_, _, job_id) in enumerate(ranks[: _LOOK_AHEAD * self.max_jobs]):
            job = self._jobs[job_id]
            if place and (job.rows > free_rows or (job.warm_up and not with_warm_ups)):
                continue
            yield job_id
            free_jobs, free_rows = free_jobs - 1, free_rows - job.rows
            if free_jobs < 1 or free_rows < 1:
                return

    def advance(self, job_id: str) -> bool:
        """Record one step done; True when it was the last, and then the job has left. KeyError when unknown."""
        job = self._jobs[job_id]
        if job.steps_left == 1:
            return self.remove(job_id)
        job.steps_left -= 1
        self._row_steps[job.shape] -= job.rows
        return False
