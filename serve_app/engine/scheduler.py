"""Which jobs advance one denoising step together: the batching policy, pure Python without torch, threads or a clock.

Jobs of one shape can share a forward pass whatever step each is at. Every job has a time by which it is `due`, fixed
when it comes, and the earliest due goes first: its shape gets the pass, and the jobs of that shape that are due next
fill it up. So a short job is not stuck behind a long one (it is due sooner), urgent work takes the next step of what
runs already, a head of another shape holds nobody up, and nothing starves, because newcomers are due ever later. What
gives way keeps its place and its steps. Warm-up jobs share a pass with their own kind, unless they are overdue.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
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
_SHAPES_LOOKED_AT = 8
_IN_COMPANY = 2.0  # times longer than alone, about, is a step in a full pass


def due(now: float, expected_seconds: float, priority: Priority, deadline: float | None = None) -> float:
    """Return when a job that comes `now` is due, on the clock of `now` and `deadline`."""
    usual = now + STRETCH * expected_seconds + PATIENCE[priority]
    return usual if deadline is None else min(usual, deadline)


@dataclass(slots=True)
class _Job(Generic[Shape]):
    shape: Shape
    rank: tuple[float, int, str]
    rows: int
    priority: Priority
    steps_left: int
    step_seconds: float

    @property
    def late_from(self) -> float:
        """When it must go first, to be done when it is due."""
        return self.rank[0] - _IN_COMPANY * self.steps_left * self.step_seconds


@dataclass(frozen=True, slots=True)
class Backlog:
    """Work of one shape: jobs, and the steps still to do times the rows each takes."""

    jobs: int
    row_steps: int


class BatchScheduler(Generic[Shape]):
    """Jobs waiting and running. Not thread-safe: one owner calls it between passes.

    max_jobs: most jobs in a pass. max_rows: most rows of a shape in a pass (a guided job takes two), asked each time.
    pass_seconds: what a pass over so many rows takes, 0 where nobody knows.
    """

    def __init__(
        self,
        max_jobs: int,
        max_rows: Callable[[Shape], int] = lambda shape: 1 << 30,
        pass_seconds: Callable[[Shape, int], float] = lambda shape, rows: 0.0,
    ) -> None:
        if max_jobs < 1:
            raise ValueError("max_jobs must be at least 1")
        self.max_jobs = max_jobs
        self._max_rows = max_rows
        self._pass_seconds = pass_seconds
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
        self,
        job_id: str,
        shape: Shape,
        num_steps: int,
        *,
        due: float = 0.0,
        rows: int = 1,
        priority: Priority = Priority.INTERACTIVE,
        step_seconds: float = 0.0,
    ) -> None:
        """Queue a job of `num_steps` steps, each of `step_seconds` when it is alone.

        Raises ValueError when the id is taken or there is nothing to do.
        """
        if job_id in self._jobs:
            raise ValueError(f"job {job_id} is queued already")
        if num_steps < 1 or rows < 1:
            raise ValueError("num_steps and rows must be at least 1")
        self._came += 1
        job = self._jobs[job_id] = _Job(shape, (due, self._came, job_id), rows, priority, num_steps, step_seconds)
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

    def promote(self, job_id: str, due: float, priority: Priority = Priority.INTERACTIVE) -> bool:
        """Make a job due no later than `due`, of `priority` at least; False when it is not here. It keeps its steps."""
        job = self._jobs.get(job_id)
        if job is None:
            return False
        job.priority = min(job.priority, priority, key=PATIENCE.__getitem__)
        if due < job.rank[0]:
            ranks = self._waiting[job.shape]
            del ranks[bisect.bisect_left(ranks, job.rank)]
            job.rank = (due, *job.rank[1:])
            bisect.insort(ranks, job.rank)
        return True

    def next_batch(self, now: float) -> tuple[str, ...]:
        """Return the jobs that advance together, `now` on the clock of `due`; empty when idle."""
        if not self._waiting:
            return ()
        shapes = sorted(self._waiting, key=lambda shape: self._waiting[shape][0])
        first = self._first(shapes[0])
        batch = tuple(self._filling(shapes[0]))
        if len(self) < self.max_jobs or now >= first.late_from:
            return batch
        fullness = self._fullness(shapes[0], batch)
        for shape in shapes[1:_SHAPES_LOOKED_AT]:
            if fullness < 1 and self._first(shape).priority is first.priority:
                other = tuple(self._filling(shape))
                if (fuller := self._fullness(shape, other)) > fullness:
                    batch, fullness = other, fuller
        return batch

    def _first(self, shape: Shape) -> _Job[Shape]:
        return self._jobs[self._waiting[shape][0][2]]

    def _fullness(self, shape: Shape, batch: Sequence[str]) -> float:
        rows = sum(self._jobs[job_id].rows for job_id in batch)
        return min(1.0, max(rows / self._max_rows(shape), len(batch) / self.max_jobs))

    def _filling(self, shape: Shape) -> Iterator[str]:
        """Yield the shape's first job and those after it that fit beside it."""
        ranks = self._waiting[shape]
        max_rows, jobs, rows = self._max_rows(shape), 0, 0
        with_warm_ups = self._first(shape).priority is Priority.WARM_UP
        for _, _, job_id in ranks[: _LOOK_AHEAD * self.max_jobs]:
            job = self._jobs[job_id]
            if jobs and (rows + job.rows > max_rows or (job.priority is Priority.WARM_UP and not with_warm_ups)):
                continue
            if jobs and len(self) < self.max_jobs and not self._pays(shape, jobs, rows, job.rows):
                continue
            yield job_id
            jobs, rows = jobs + 1, rows + job.rows
            if jobs >= self.max_jobs or rows >= max_rows:
                return

    def _pays(self, shape: Shape, jobs: int, rows: int, more: int) -> bool:
        """Tell whether `more` rows beside `rows` of so many jobs cost them less than they save whoever else is here."""
        delay = self._pass_seconds(shape, rows + more) - self._pass_seconds(shape, rows)
        saved = self._pass_seconds(shape, more) - delay
        return jobs * delay <= (len(self) - jobs) * saved

    def advance(self, job_id: str) -> bool:
        """Record one step done; True when it was the last, and then the job has left. KeyError when unknown."""
        job = self._jobs[job_id]
        if job.steps_left == 1:
            return self.remove(job_id)
        job.steps_left -= 1
        self._row_steps[job.shape] -= job.rows
        return False
