"""Which jobs advance one denoising step together: the batching policy, pure Python without torch or threads.

Jobs of one shape can share a forward pass whatever step each is at. A job joins at the next step boundary and leaves
after its last step, so a short one is not stuck behind a long one. Shapes take turns, one pass each, in the order
their first job arrived; within a shape the first `max_batch_size` by arrival advance. So nothing starves: a job waits
for the earlier ones of its shape only, and each of those advances once per turn.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class _Job:
    num_steps: int
    steps_done: int = 0


class BatchScheduler:
    """Jobs waiting and running. Not thread-safe: one owner calls it between passes."""

    def __init__(self, max_batch_size: int) -> None:
        if max_batch_size < 1:
            raise ValueError("max_batch_size must be at least 1")
        self.max_batch_size = max_batch_size
        self._shape_of: dict[str, Hashable] = {}
        # Both levels keep order: the outer dict is the shapes' turn (next one first), the inner one arrival.
        self._turns: dict[Hashable, dict[str, _Job]] = {}

    def __len__(self) -> int:
        return len(self._shape_of)

    @property
    def backlog_steps(self) -> int:
        """Steps still to do over all jobs."""
        return sum(job.num_steps - job.steps_done for job in self._jobs())

    def add(self, job_id: str, shape: Hashable, num_steps: int) -> None:
        """Queue a job of `num_steps` steps; ValueError when the id is taken or there is nothing to do."""
        if job_id in self._shape_of:
            raise ValueError(f"job {job_id} is queued already")
        if num_steps < 1:
            raise ValueError("num_steps must be at least 1")
        self._shape_of[job_id] = shape
        self._turns.setdefault(shape, {})[job_id] = _Job(num_steps)

    def remove(self, job_id: str) -> bool:
        """Drop a job, waiting or running; False when it is not here (any more)."""
        if job_id not in self._shape_of:
            return False
        shape = self._shape_of.pop(job_id)
        del self._turns[shape][job_id]
        if not self._turns[shape]:
            del self._turns[shape]
        return True

    def next_batch(self) -> tuple[str, ...]:
        """Return the jobs that advance together now, oldest first, and end their shape's turn; empty when idle."""
        shape = next(iter(self._turns), None)
        if shape is None:
            return ()
        jobs = self._turns[shape] = self._turns.pop(shape)  # to the end of the turns
        return tuple(jobs)[: self.max_batch_size]

    def advance(self, job_id: str) -> bool:
        """Record one step done; True when it was the last, and then the job has left. KeyError when unknown."""
        job = self._turns[self._shape_of[job_id]][job_id]
        job.steps_done += 1
        if job.steps_done < job.num_steps:
            return False
        return self.remove(job_id)

    def _jobs(self) -> Iterator[_Job]:
        return (job for jobs in self._turns.values() for job in jobs.values())
