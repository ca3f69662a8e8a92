"""Which jobs advance one denoising step together: the batching policy, pure Python without torch, threads or a clock.

Jobs of one shape can share a forward pass whatever step each is at. Every job has a time by which it is `due`, and the
earliest due goes first: its shape gets the pass, and the jobs of that shape that are due next fill it up. So a short
job is not stuck behind a long one (it is due sooner), urgent work takes the next step of what runs already, a head of
another shape holds no job up, and nothing starves, because newcomers are due ever later. What gives way keeps its place
and its steps. Warm-up jobs share a pass with their own kind, unless they are overdue.

When a job is due depends on how long it would take alone, and estimates of that change. All jobs of one kind are judged
by one estimate, at any time the same for all of them, so equal jobs go in the order they came, whatever it does.
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


DRIFT = 0.1
"""By how much of itself an estimate must have changed before jobs are ranked by the new one."""

Rank = tuple[float, float, int, str]
"""When it is due, since when it waits, how many came before it, its name."""


def due(now: float, expected_seconds: float, priority: Priority, deadline: float | None = None) -> float:
    """Return when a job that comes `now` is due, on the clock of `now` and `deadline`."""
    usual = now + STRETCH * expected_seconds + PATIENCE[priority]
    return usual if deadline is None else min(usual, deadline)


def drifted(estimate: float, by_now: float) -> bool:
    """Tell whether an estimate has changed enough to rank by the new one."""
    return abs(by_now - estimate) > DRIFT * estimate


class Claim:
    """Since when a job waits, at which priorities, and its deadline: what it is due by. All on one clock."""

    __slots__ = ("_asked", "_deadline")

    def __init__(self, asked_at: float, priority: Priority, deadline: float | None = None) -> None:
        self._asked = {priority: asked_at}
        self._deadline = deadline

    def join(self, asked_at: float, priority: Priority, deadline: float | None = None) -> None:
        """Take in a further caller that came then and is perhaps more urgent; a job never gets later by that."""
        self._asked[priority] = min(asked_at, self._asked.get(priority, asked_at))
        if deadline is not None:
            self._deadline = deadline if self._deadline is None else min(deadline, self._deadline)

    @property
    def asked_at(self) -> float:
        """Since when it waits."""
        return min(self._asked.values())

    def due(self, expected_seconds: float) -> float:
        """Return when the job is due that would take so long alone."""
        return min(due(at, expected_seconds, priority, self._deadline) for priority, at in self._asked.items())


@dataclass(slots=True)
class _Job(Generic[Shape]):
    shape: Shape
    claim: Claim
    number: int
    rows: int
    priority: Priority
    num_steps: int
    steps_left: int
    rank: Rank = (0.0, 0.0, 0, "")


@dataclass(frozen=True, slots=True)
class Backlog:
    """Work of one shape: jobs, and the steps still to do times the rows each takes."""

    jobs: int
    row_steps: int


class BatchScheduler(Generic[Shape]):
    """Jobs waiting and running. Not thread-safe: one owner calls it between passes.

    max_jobs: most jobs in a pass. max_rows: most rows of a shape in a pass (a guided job takes two), asked each time.
    pass_seconds: what a pass over so many rows takes, 0 where that is not known. step_seconds: what a step of a job of
    so many rows takes when it is alone, the best guess where that is not known.
    """

    def __init__(
        self,
        max_jobs: int,
        max_rows: Callable[[Shape], int] = lambda shape: 1 << 30,
        pass_seconds: Callable[[Shape, int], float] = lambda shape, rows: 0.0,
        step_seconds: Callable[[Shape, int], float] = lambda shape, rows: 0.0,
    ) -> None:
        if max_jobs < 1:
            raise ValueError("max_jobs must be at least 1")
        self.max_jobs = max_jobs
        self._max_rows = max_rows
        self._pass_seconds = pass_seconds
        self._step_seconds = step_seconds
        self._estimates: dict[Shape, dict[int, float]] = {}
        self._jobs: dict[str, _Job[Shape]] = {}
        self._waiting: dict[Shape, list[Rank]] = {}
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
        asked_at: float = 0.0,
        rows: int = 1,
        priority: Priority = Priority.INTERACTIVE,
        deadline: float | None = None,
    ) -> None:
        """Queue a job of `num_steps` steps that waits since `asked_at`, on the clock of `next_batch` and `deadline`.

        Raises ValueError when the id is taken or there is nothing to do.
        """
        if job_id in self._jobs:
            raise ValueError(f"job {job_id} is queued already")
        if num_steps < 1 or rows < 1:
            raise ValueError("num_steps and rows must be at least 1")
        self._came += 1
        claim = Claim(asked_at, priority, deadline)
        job = self._jobs[job_id] = _Job(shape, claim, self._came, rows, priority, num_steps, num_steps)
        self._estimates.setdefault(shape, {}).setdefault(rows, self._step_seconds(shape, rows))
        job.rank = self._rank(job_id, job)
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
            del self._waiting[job.shape], self._row_steps[job.shape], self._estimates[job.shape]
        return True

    def promote(
        self,
        job_id: str,
        asked_at: float,
        priority: Priority = Priority.INTERACTIVE,
        deadline: float | None = None,
    ) -> bool:
        """Take one more caller into a job, that asked then; it gets no later, keeps its steps. False: not here."""
        job = self._jobs.get(job_id)
        if job is None:
            return False
        ranks = self._waiting[job.shape]
        del ranks[bisect.bisect_left(ranks, job.rank)]
        job.priority = min(job.priority, priority, key=PATIENCE.__getitem__)
        job.claim.join(asked_at, priority, deadline)
        job.rank = self._rank(job_id, job)
        bisect.insort(ranks, job.rank)
        return True

    def next_batch(self, now: float, may_run: Callable[[str], bool] | None = None) -> tuple[str, ...]:
        """Return the jobs that advance together, of those that `may_run` (None: all); empty when there is none.

        now: on the clock of `asked_at`.
        """
        self._rank_anew()
        waiting = self._waiting if may_run is None else self._those(may_run)
        if not waiting:
            return ()
        shapes = sorted(waiting, key=lambda shape: waiting[shape][0])
        first = self._jobs[waiting[shapes[0]][0][-1]]
        batch = tuple(self._filling(shapes[0], waiting[shapes[0]]))
        if len(self) < self.max_jobs or now >= self._late_from(first):
            return batch
        fullness = self._fullness(shapes[0], batch)
        for shape in shapes[1:_SHAPES_LOOKED_AT]:
            ranks = waiting[shape]
            if fullness < 1 and self._jobs[ranks[0][-1]].priority is first.priority:
                other = tuple(self._filling(shape, ranks))
                if (fuller := self._fullness(shape, other)) > fullness:
                    batch, fullness = other, fuller
        return batch

    def _those(self, may_run: Callable[[str], bool]) -> dict[Shape, list[Rank]]:
        those = {shape: [rank for rank in ranks if may_run(rank[-1])] for shape, ranks in self._waiting.items()}
        return {shape: ranks for shape, ranks in those.items() if ranks}

    def _rank(self, job_id: str, job: _Job[Shape]) -> Rank:
        alone = job.num_steps * self._estimates[job.shape][job.rows]
        return (job.claim.due(alone), job.claim.asked_at, job.number, job_id)

    def _rank_anew(self) -> None:
        """Rank those jobs anew whose estimate has drifted: all of one kind at the same time."""
        for shape, estimates in self._estimates.items():
            new = {rows: self._step_seconds(shape, rows) for rows in estimates}
            if any(drifted(estimates[rows], new[rows]) for rows in new):
                self._estimates[shape] = new
                jobs = [(rank[-1], self._jobs[rank[-1]]) for rank in self._waiting[shape]]
                for job_id, job in jobs:
                    job.rank = self._rank(job_id, job)
                self._waiting[shape] = sorted(job.rank for _, job in jobs)

    def _late_from(self, job: _Job[Shape]) -> float:
        """Return when it must go first, to be done when it is due."""
        return job.rank[0] - _IN_COMPANY * job.steps_left * self._estimates[job.shape][job.rows]

    def _fullness(self, shape: Shape, batch: Sequence[str]) -> float:
        rows = sum(self._jobs[job_id].rows for job_id in batch)
        return min(1.0, max(rows / self._max_rows(shape), len(batch) / self.max_jobs))

    def _filling(self, shape: Shape, ranks: Sequence[Rank]) -> Iterator[str]:
        """Yield the shape's first job and those after it that fit beside it."""
        max_rows, jobs, rows = self._max_rows(shape), 0, 0
        with_warm_ups = self._jobs[ranks[0][-1]].priority is Priority.WARM_UP
        refused: set[int] = set()  # numbers of rows: what does not pay for one job must not pay for a later equal one
        for *_, job_id in ranks[: _LOOK_AHEAD * self.max_jobs]:
            job = self._jobs[job_id]
            if jobs and (rows + job.rows > max_rows or (job.priority is Priority.WARM_UP and not with_warm_ups)):
                continue
            if job.rows in refused:
                continue
            if jobs and len(self) < self.max_jobs and not self._pays(shape, jobs, rows, job.rows):
                refused.add(job.rows)
                continue
            yield job_id
            jobs, rows = jobs + 1, rows + job.rows
            if jobs >= self.max_jobs or rows >= max_rows:
                return

    def _pays(self, shape: Shape, jobs: int, rows: int, more: int) -> bool:
        """Tell whether `more` rows beside `rows` of so many jobs cost them less than they save the other jobs."""
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
