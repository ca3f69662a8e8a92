"""What this router has yet to write to the job store: an outage delays it, and the newest word on a job counts.

A caller that needs an answer writes at once and hears whether the job still stands; what could not be written, and
what needs no answer, is owed and written at the next `flush`. A deletion is the last word on a job.
"""

from __future__ import annotations

import asyncio
from collections import deque

from serve_app.errors import Unavailable
from serve_app.service.jobs.job import Job, gone
from serve_app.service.jobs.store import JobStore

FILED_AT_ONCE = 100
FILED_AT_MOST = 20_000
"""Of hits' records, which their ids can stand for; during a long outage the oldest are not listed later."""


class WriteBehind:
    """The pending writes of one router."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._owed: dict[str, Job | None] = {}
        self._filed: deque[Job] = deque(maxlen=FILED_AT_MOST)
        self._filing = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._owed) + len(self._filed)

    def owe(self, job: Job) -> None:
        """Write this state of a job at the next flush."""
        if self._owed.get(job.id, job) is not None:
            self._owed[job.id] = job

    async def update(self, job: Job) -> Job | None:
        """Write now, or owe it when the store is away; returns what `JobStore.update` does, `job` when owed."""
        self.owe(job)
        try:
            return await self._settle(job.id)
        except Unavailable:
            return job

    async def delete(self, job_id: str, *, known: bool) -> bool:
        """Delete now; a job that is known to exist is deleted also while the store is away, else raises Unavailable."""
        self._owed.pop(job_id, None)
        try:
            return await self._store.delete(job_id)
        except Unavailable:
            if not known:
                raise
            self._owed[job_id] = None
            return True

    async def get(self, job_id: str) -> Job | None:
        """Return the record; raises NotFound if the job was deleted, Unavailable."""
        if job_id in self._owed and self._owed[job_id] is None:
            raise gone(job_id)
        return await self._store.get(job_id)

    def file(self, job: Job) -> bool:
        """Take in the record of a job that was complete when it came; True when it is the first that waits."""
        self._filed.append(job)
        return len(self._filed) == 1

    async def write_filed(self) -> None:
        """Write what was filed; what comes while one write is under way goes into the next, all together."""
        async with self._filing:
            while self._filed:
                batch = [self._filed.popleft() for _ in range(min(FILED_AT_ONCE, len(self._filed)))]
                try:
                    await self._store.add(*batch)
                except (Unavailable, asyncio.CancelledError):
                    self._filed.extendleft(reversed(batch))
                    raise

    async def flush(self) -> None:
        """Write all that is owed; raises Unavailable at the first that cannot be."""
        for job_id in list(self._owed):
            await self._settle(job_id)
        await self.write_filed()

    async def _settle(self, job_id: str) -> Job | None:
        """Write what is owed of one job; what fails for an outage is owed again, unless a newer word came meanwhile."""
        if job_id not in self._owed:
            return None
        job = self._owed.pop(job_id)
        try:
            if job is not None:
                return await self._store.update(job)
            await self._store.delete(job_id)
        except (Unavailable, asyncio.CancelledError):
            self._owed.setdefault(job_id, job)
            raise
        return None
