"""Where job records live: two stores with one contract, in this process' memory, and in Redis (`redis_jobs`).

What was accepted stays until it ends: beyond the bounds of count and bytes finished jobs' records go, the oldest first,
and when unfinished ones alone fill them a new one is refused. Records of hits (complete when they came; their ids can
stand for them) have as many places of their own and a quarter of the bytes, so no flood of them takes a job's.

A change of a record is an update, never a creation of a deleted one, so that a follower on one replica cannot bring
back what was deleted through another; and an end is never changed, so that of two followers the first one tells it.
A follower of jobs says so every second; jobs whose follower fell silent are orphans, and `claim` gives each to one.
Silence is told by a time that goes on between heartbeats and claims, and that no step of a clock changes.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable
from typing import Literal, Protocol

from serve_app.cache.redis.script import milliseconds
from serve_app.clock import steady
from serve_app.errors import Busy
from serve_app.flight.record import LEASE_SECONDS
from serve_app.service.jobs.idempotency import Mark, Marks
from serve_app.service.jobs.job import Job, Order, Page, gone, unknown
from serve_app.service.jobs.signed_id import created_at

ORPHAN_SECONDS = LEASE_SECONDS
"""An unfinished job that no process said to follow for this long is an orphan."""

MAX_COUNT = 100_000
MAX_BYTES = 256 << 20
SWEPT_AT_ONCE = 500
"""Entries that one script removes at most: some two milliseconds of Redis' time."""
_OVERHEAD = 400

Class = Literal["open", "ended", "hit"]


def full() -> Busy:
    """Return the error for a job that there is no room for."""
    return Busy(
        "Unfinished jobs fill the job records (settings jobs_max_count and jobs_max_bytes, or the memory of their "
        "server); try again when some have ended.",
        retry_after=30,
    )


class JobStore(Protocol):
    """Job records; every method raises Unavailable when they cannot be reached."""

    async def accept(self, job: Job, mark: Mark) -> str:
        """Store a new job and leave its mark, in one step; return its id, or that of the job which answers the mark.

        When this returns, the job survives this process. Raises KeyReused, and Busy when unfinished jobs leave no room.
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

        Returns what the record is now: `job`, or the end that was told before; None: deleted or expired.
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
        """Return up to `limit` jobs by creation time; raises NotFound if `after` is unknown.

        A job that was deleted, or whose id says when it was made, is a place to go on from whether or not it is there.
        """
        ...

    async def sweep(self) -> int:
        """Remove what has expired and what is too much; return how many entries. Any replica may, at any time."""
        ...

    async def aclose(self) -> None:
        """Close connections."""
        ...


class MemoryJobs:
    """Job records of one process: the naive twin of RedisJobs; max_jobs, max_bytes: as its max_count and max_bytes."""

    def __init__(
        self,
        max_jobs: int = MAX_COUNT,
        clock: Callable[[], float] = steady,
        *,
        max_bytes: int = MAX_BYTES,
        tombstone_seconds: float = 30 * 86_400,
    ) -> None:
        self._max_jobs = max_jobs
        self._max_bytes = max_bytes
        self._tombstone_seconds = tombstone_seconds
        self._clock = clock
        self._jobs: dict[str, Job] = {}
        self._order: list[tuple[float, str]] = []
        self._beats: dict[str, float] = {}
        self._steady: tuple[float, float] | None = None
        self._class: dict[str, Class] = {}
        self._expiry: dict[Class, list[tuple[float, str]]] = {"open": [], "ended": [], "hit": []}
        self._bytes: dict[Class, int] = {"open": 0, "ended": 0, "hit": 0}
        self._deleted: dict[str, float] = {}
        self._floor = float("-inf")
        self._marks = Marks(max_jobs, clock)
        self._hit_marks = Marks(max_jobs, clock)

    def __len__(self) -> int:
        return len(self._jobs)

    async def accept(self, job: Job, mark: Mark) -> str:
        """Store a new job and leave its mark, unless an earlier job answers it; raises KeyReused, Busy."""
        earlier = await self.recall(mark)
        if earlier is not None:
            return earlier
        if not job.status.is_final and self._is_full(job) and not self._is_known(job):
            raise full()
        mine, other = self._marks, self._hit_marks
        if job.status.is_final:
            mine, other = other, mine
        other.forget(mark)
        mine.leave(mark, job.id, job.expires_at - job.created_at)
        await self.add(job)
        return job.id

    async def recall(self, mark: Mark) -> str | None:
        """Return the id of the job that answers the mark; raises KeyReused."""
        return self._marks.answer(mark) or self._hit_marks.answer(mark)

    async def add(self, *jobs: Job) -> None:
        """Store new records, but none that there is or that was deleted."""
        for job in jobs:
            if not self._is_known(job) and (job.status.is_final or not self._is_full(job)):
                self._put(job, "hit" if job.status.is_final else "open")
        self._trim()

    async def update(self, job: Job) -> Job | None:
        """Write the newest state, unless the job was deleted, has expired or has ended before."""
        before = self._jobs.get(job.id)
        if self._clock() >= job.expires_at or (before is None and self._is_deleted(job.id, job.created_at)):
            self._beats.pop(job.id, None)
            return None
        if before is not None and before.status.is_final:
            return before
        self._put(job, "ended" if job.status.is_final else "open")
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
        job = self._jobs.get(job_id)
        if job is None and self._is_deleted(job_id, created_at(job_id)):
            raise gone(job_id)
        return None if job is None or self._clock() >= job.expires_at else job

    async def delete(self, job_id: str) -> bool:
        """Delete the record and remember that it was deleted."""
        job = self._jobs.get(job_id)
        created = created_at(job_id) if job is None else job.created_at
        self._drop(job_id)
        self._deleted.setdefault(job_id, self._clock() if created is None else created)
        while len(self._deleted) > self._max_jobs:
            oldest = min(self._deleted, key=lambda each: (self._deleted[each], each))
            self._floor = max(self._floor, self._deleted.pop(oldest) + 1e-6)  # ids say it in microseconds
        return job is not None and self._clock() < job.expires_at

    async def page(self, *, after: str | None, limit: int, order: Order) -> Page:
        """Return up to `limit` jobs by creation time."""
        now = self._clock()
        place = None if after is None else self._place(after)
        ordered = self._order if order == "asc" else self._order[::-1]
        if place is not None:
            ordered = [each for each in ordered if (each > place if order == "asc" else each < place)]
        found = [self._jobs[job_id] for _, job_id in ordered if self._jobs[job_id].expires_at > now][: limit + 1]
        return Page(tuple(found[:limit]), len(found) > limit)

    async def sweep(self) -> int:
        """Remove what has expired."""
        now = self._clock()
        expired = [job_id for listed in self._expiry.values() for expires, job_id in listed if expires <= now]
        forgotten = [each for each, created in self._deleted.items() if created < now - self._tombstone_seconds]
        for job_id in expired:
            self._drop(job_id)
        for job_id in forgotten:
            del self._deleted[job_id]
        marks = self._marks.sweep() + self._hit_marks.sweep()
        return len(expired) + len(forgotten) + marks + self._trim()

    async def aclose(self) -> None:
        """Nothing to close."""

    def _place(self, job_id: str) -> tuple[float, str]:
        job = self._jobs.get(job_id)
        created = self._deleted.get(job_id, created_at(job_id)) if job is None else job.created_at
        if created is None:
            raise unknown(job_id)
        return created, job_id

    def _is_deleted(self, job_id: str, created: float | None) -> bool:
        return job_id in self._deleted or (created is not None and created <= self._floor)

    def _is_known(self, job: Job) -> bool:
        return job.id in self._jobs or self._is_deleted(job.id, job.created_at)

    def _is_full(self, job: Job) -> bool:
        unfinished = self._expiry["open"]
        return len(unfinished) >= self._max_jobs or self._bytes["open"] + len(job.to_json()) > self._max_bytes

    def _trim(self) -> int:
        """Drop hits beyond their share, then ended jobs beyond theirs; return how many."""
        before = len(self._jobs)
        hits, ended, unfinished = (self._expiry[each] for each in ("hit", "ended", "open"))
        while hits and (len(hits) > self._max_jobs or self._bytes["hit"] > self._max_bytes / 4):
            self._drop(hits[0][1])
        while ended and (
            len(ended) + len(unfinished) > self._max_jobs
            or self._bytes["ended"] + self._bytes["open"] > self._max_bytes
        ):
            self._drop(ended[0][1])
        return before - len(self._jobs)

    def _put(self, job: Job, kind: Class) -> None:
        self._drop(job.id)
        self._jobs[job.id] = job
        self._class[job.id] = kind
        self._bytes[kind] += _size(job)
        bisect.insort(self._order, (job.created_at, job.id))
        bisect.insort(self._expiry[kind], (job.expires_at, job.id))
        if kind == "open":
            self._beats[job.id] = max([milliseconds(self._clock()), *self._beats.values()])

    def _time(self) -> float:
        """Return milliseconds that go on between two calls, but not over a step or a time without calls."""
        now = milliseconds(self._clock())
        steady, at = self._steady or (now, now)
        passed = now - at
        self._steady = (steady + (passed if 0 <= passed <= milliseconds(ORPHAN_SECONDS) + 500 else 0), now)
        return self._steady[0]

    def _drop(self, job_id: str) -> None:
        job = self._jobs.pop(job_id, None)
        self._beats.pop(job_id, None)
        if job is not None:
            kind = self._class.pop(job_id)
            self._bytes[kind] -= _size(job)
            for listed, key in ((self._order, job.created_at), (self._expiry[kind], job.expires_at)):
                del listed[bisect.bisect_left(listed, (key, job_id))]


def _size(job: Job) -> int:
    return len(job.to_json()) + 2 * len(job.id) + _OVERHEAD
