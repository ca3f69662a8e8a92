"""Where job records live: two stores with one contract, in this process' memory, and in Redis (`redis_jobs`).

A change of a record is an update, never a creation of a deleted one, so that a follower on one replica cannot bring
back what was deleted through another; and an end is never changed, so that of two followers the first one tells it.
Whoever follows jobs says so every second; those whose follower fell silent are orphans, and `claim` gives each to one.
Silence is told by a time that goes on between heartbeats and claims, and that no step of a clock changes.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable
from typing import Protocol

from serve_app.cache.flight import LEASE_SECONDS
from serve_app.cache.script import milliseconds
from serve_app.service.job import Job, Order, Page, gone, unknown
from serve_app.service.repeats import Mark, Marks
from serve_app.steady import steady

ORPHAN_SECONDS = LEASE_SECONDS
"""An unfinished job that nobody said to follow for this long is an orphan."""


class JobStore(Protocol):
    """Job records; every method raises Unavailable when they cannot be reached."""

    async def accept(self, job: Job, mark: Mark) -> str:
        """Store a new job and leave its mark, in one step; return its id, or that of the job which answers the mark.

        When this returns, the job survives this process. Raises KeyReused.
        """
        ...

    async def recall(self, mark: Mark) -> str | None:
        """Return the id of the job that answers the mark, None if there is none; raises KeyReused."""
        ...

    async def add(self, *jobs: Job) -> None:
        """Store new records. One that exists or was deleted stays so."""
        ...

    async def update(self, job: Job) -> Job | None:
        """Write the newest state, anew if it was lost; an end leaves the unfinished.

        Returns what the record is now: `job`, or the end that somebody told before; None: deleted or expired.
        """
        ...

    async def beat(self, job_ids: Iterable[str]) -> list[str]:
        """Say that these unfinished jobs are followed; return those that are not among the unfinished any more."""
        ...

    async def claim(self, limit: int) -> tuple[Job, ...]:
        """Return up to `limit` orphans, the oldest first, and count as their follower from now on."""
        ...

    async def get(self, job_id: str) -> Job | None:
        """Return the record, None if there is none; raises NotFound if it was deleted."""
        ...

    async def delete(self, job_id: str) -> bool:
        """Delete the record, remember that it was deleted; False when there was none."""
        ...

    async def page(self, *, after: str | None, limit: int, order: Order) -> Page:
        """Return up to `limit` jobs by creation time; raises NotFound if `after` is unknown."""
        ...

    async def aclose(self) -> None:
        """Close connections."""
        ...


class MemoryJobs:
    """Job records of one process, the oldest forgotten beyond `max_jobs`."""

    def __init__(self, max_jobs: int = 100_000, clock: Callable[[], float] = steady) -> None:
        self._max_jobs = max_jobs
        self._clock = clock
        self._jobs: dict[str, Job] = {}
        self._order: list[tuple[float, str]] = []
        self._beats: dict[str, float] = {}
        self._steady: tuple[float, float] | None = None
        self._deleted: dict[str, None] = {}
        self._marks = Marks(max_jobs, clock)

    def __len__(self) -> int:
        return len(self._jobs)

    async def accept(self, job: Job, mark: Mark) -> str:
        """Store a new job and leave its mark, unless an earlier job answers it; raises KeyReused."""
        earlier = self._marks.answer(mark)
        if earlier is not None:
            return earlier
        self._marks.leave(mark, job.id, job.expires_at - self._clock())
        await self.add(job)
        return job.id

    async def recall(self, mark: Mark) -> str | None:
        """Return the id of the job that answers the mark; raises KeyReused."""
        return self._marks.answer(mark)

    async def add(self, *jobs: Job) -> None:
        """Store new records, but none that there is or that was deleted."""
        for job in jobs:
            if job.id not in self._jobs and job.id not in self._deleted:
                bisect.insort(self._order, (job.created_at, job.id))
                self._put(job)
        while len(self._order) > self._max_jobs:
            self._drop(self._order[0][1])

    async def update(self, job: Job) -> Job | None:
        """Write the newest state, unless the job was deleted, has expired or has ended before."""
        if job.id in self._deleted or self._clock() >= job.expires_at:
            return None
        before = self._jobs.get(job.id)
        if before is not None and before.status.is_final:
            return before
        if before is None:
            await self.add(job)
        else:
            self._put(job)
        return job

    async def beat(self, job_ids: Iterable[str]) -> list[str]:
        """Note that these jobs are followed; return those that are not among the unfinished."""
        missing, now = [], self._time()
        for job_id in job_ids:
            if job_id in self._beats:
                self._beats[job_id] = now
            else:
                missing.append(job_id)
        return missing

    async def claim(self, limit: int) -> tuple[Job, ...]:
        """Return orphans and note that they are followed now."""
        now = self._time()
        self._beats = {job_id: min(now, beat) for job_id, beat in self._beats.items()}
        due = now - milliseconds(ORPHAN_SECONDS)
        orphans = sorted((beat, job_id) for job_id, beat in self._beats.items() if beat <= due)[: max(0, limit)]
        for _, job_id in orphans:
            self._beats[job_id] = now
        return tuple(self._jobs[job_id] for _, job_id in orphans)

    async def get(self, job_id: str) -> Job | None:
        """Return the record or None; NotFound if it was deleted."""
        if job_id in self._deleted:
            raise gone(job_id)
        job = self._jobs.get(job_id)
        if job is not None and self._clock() >= job.expires_at:
            self._drop(job_id)
            return None
        return job

    async def delete(self, job_id: str) -> bool:
        """Delete the record and remember that it was deleted."""
        self._deleted[job_id] = None
        while len(self._deleted) > self._max_jobs:
            del self._deleted[next(iter(self._deleted))]
        return self._drop(job_id)

    async def page(self, *, after: str | None, limit: int, order: Order) -> Page:
        """Return up to `limit` jobs by creation time."""
        now = self._clock()
        ordered = [job_id for _, job_id in self._order if self._jobs[job_id].expires_at > now]
        ordered = ordered if order == "asc" else ordered[::-1]
        if after is not None and after not in ordered:
            raise unknown(after)
        start = 0 if after is None else ordered.index(after) + 1
        found = [self._jobs[job_id] for job_id in ordered[start : start + limit + 1]]
        return Page(tuple(found[:limit]), len(found) > limit)

    async def aclose(self) -> None:
        """Nothing to close."""

    def _time(self) -> float:
        """Return milliseconds that go on between two calls, but not over a step or a time without calls."""
        now = milliseconds(self._clock())
        steady, at = self._steady or (now, now)
        passed = now - at
        self._steady = (steady + (passed if 0 <= passed <= milliseconds(ORPHAN_SECONDS) + 500 else 0), now)
        return self._steady[0]

    def _put(self, job: Job) -> None:
        self._jobs[job.id] = job
        if job.status.is_final:
            self._beats.pop(job.id, None)
        else:
            self._beats[job.id] = milliseconds(self._clock())

    def _drop(self, job_id: str) -> bool:
        job = self._jobs.pop(job_id, None)
        self._beats.pop(job_id, None)
        if job is not None:
            del self._order[bisect.bisect_left(self._order, (job.created_at, job.id))]
        return job is not None
