"""Jobs as clients see them: accepted, followed to their end, listed, deleted.

The desk keeps the newest state of the jobs this process follows, writes it to the job store at a measured pace, and
keeps finished ones in memory, so that a content hit asks no other tier. A job whose follower died (a killed replica, a
restart) is recognised by its age and followed anew by whoever reads it.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any

from serve_app.core import JobStatus, Progress, RenderEvent, Started
from serve_app.errors import EncoreError
from serve_app.service.jobs import Job, JobStore, Order, Page, unknown
from serve_app.service.landing import Landing, VideoFlight

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 2.0
ORPHAN_SECONDS = 10.0
KEPT_FINISHED = 20_000
FILED_AT_ONCE = 1_000


class Desk:
    """The jobs of one router.

    `board` starts or joins the flight of a job's video; `ended` hears of every job followed to its end.
    """

    def __init__(
        self,
        store: JobStore,
        board: Callable[[Job], Awaitable[tuple[VideoFlight, bool]]],
        *,
        ended: Callable[[Job, Landing | None], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._board = board
        self._ended = ended
        self._closing = False
        self._clock = clock
        self._followed: dict[str, Job] = {}
        self._followers: dict[str, asyncio.Task[None]] = {}
        self._finished: OrderedDict[str, Job] = OrderedDict()
        self._unfiled: list[Job] = []
        self._background: set[asyncio.Task[Any]] = set()
        self._forgotten = 0

    def __len__(self) -> int:
        return len(self._followed)

    async def accept(self, job: Job) -> Job:
        """Store a new job and start following it; when this returns, the job will be answered.

        A caller that is cancelled meanwhile (a client that hung up) leaves a job that is followed like any other.
        """
        flight, led = await self._board(job)
        flight.hold()  # the job counts as a waiter from here, so the flight cannot linger away before its follower runs
        await asyncio.shield(self._spawn(self._enter(job, flight, led)))
        return self._followed.get(job.id) or self._finished.get(job.id, job)

    def file(self, job: Job) -> None:
        """Keep a job that was complete when it came; its record is written behind the answer."""
        self._keep(job)
        self._unfiled.append(job)
        if len(self._unfiled) == 1:
            self._spawn(self._write_filed())

    async def find(self, job_id: str) -> Job | None:
        """Return the newest known state, None if no record exists; NotFound if it was deleted."""
        job = self._followed.get(job_id)
        if job is None and (job := self._finished.get(job_id)) is not None:
            self._finished.move_to_end(job_id)  # what is asked for stays; a flood of others must not push it out
        if job is not None:
            return job
        forgotten = self._forgotten
        job = await self._store.get(job_id)
        if job is None:
            return None
        if job.status.is_final:
            if forgotten == self._forgotten:  # else it may have been deleted while we read
                self._keep(job)
        elif self._clock() - job.updated_at > ORPHAN_SECONDS and job_id not in self._followed:
            job = await self._adopt(job)
        return job

    async def page(self, *, after: str | None, limit: int, order: Order) -> Page:
        """Return one page of jobs, those followed here in their newest state."""
        page = await self._store.page(after=after, limit=limit, order=order)
        return Page(tuple(self._followed.get(job.id, job) for job in page.jobs), page.has_more)

    async def delete(self, job_id: str) -> None:
        """Delete the job; its render ends at the next step unless somebody else waits. NotFound if unknown."""
        follower = self._followers.get(job_id)
        known = self.forget(job_id)
        if not await self._store.delete(job_id) and not known:
            raise unknown(job_id)
        self.forget(job_id)  # its follower, or somebody who read it, may have kept it while the store was asked
        if follower is not None:
            self._followed.pop(job_id, None)
            follower.cancel()

    def forget(self, job_id: str) -> bool:
        """Drop what this process remembers of a finished job; tell whether it knew the job, finished or not."""
        self._forgotten += 1
        return self._finished.pop(job_id, None) is not None or job_id in self._followed

    def stats(self) -> dict[str, int]:
        """Return how many jobs are followed and kept here."""
        return {"followed": len(self._followed), "finished_kept": len(self._finished)}

    async def aclose(self) -> None:
        """Finish writing, stop following, close the store; unfinished jobs are adopted by another replica."""
        self._closing = True
        for follower in self._followers.values():
            follower.cancel()
        await asyncio.gather(*self._followers.values(), *self._background, return_exceptions=True)
        await self._store.aclose()

    async def _write_filed(self) -> None:
        """Write what was filed; what comes while one write is under way goes into the next, all together."""
        while self._unfiled:
            await self._store.add(*self._unfiled[:FILED_AT_ONCE])
            del self._unfiled[:FILED_AT_ONCE]

    async def _enter(self, job: Job, flight: VideoFlight, led: bool) -> None:
        try:
            await self._store.add(job)
            self._follow(job, flight, led)
        finally:
            flight.release()

    async def _adopt(self, job: Job) -> Job:
        logger.warning("adopting orphaned job %s", job.id)
        flight, led = await self._board(job)
        if job.id not in self._followed:
            self._follow(job, flight, led)
        return self._followed.get(job.id, job)

    def _follow(self, job: Job, flight: VideoFlight, led: bool) -> None:
        self._followed[job.id] = job
        flight.hold()
        flight.watch(lambda event: self._hear(job.id, event))
        follower = self._spawn(self._see_through(job.id, flight, led))
        self._followers[job.id] = follower

    def _hear(self, job_id: str, event: RenderEvent) -> None:
        job = self._followed.get(job_id)
        if job is None:
            return
        if isinstance(event, Started):
            job = replace(job, status=JobStatus.IN_PROGRESS, embedding=event.embedding)
        elif isinstance(event, Progress):
            percent = min(99, 100 * event.step // max(1, event.total))
            # A render that is begun again on another replica counts from nought; the job shows the furthest it got.
            job = replace(job, status=JobStatus.IN_PROGRESS, progress=max(job.progress, percent))
        self._followed[job_id] = job

    async def _see_through(self, job_id: str, flight: VideoFlight, led: bool) -> None:
        """Follow one job to its end. Cancelled means deleted, and then the flight is left at once, or closing."""
        result = asyncio.ensure_future(flight.result())
        alive = True
        try:
            while alive and not (await asyncio.wait({result}, timeout=HEARTBEAT_SECONDS))[0]:
                alive = await self._beat(job_id)
            if alive:
                await self._end(job_id, result, led)
        except asyncio.CancelledError:
            alive = self._closing
            raise
        finally:
            result.cancel()
            self._followed.pop(job_id, None)
            self._followers.pop(job_id, None)
            flight.release(at_once=not alive)

    async def _beat(self, job_id: str) -> bool:
        job = replace(self._followed[job_id], updated_at=self._clock())
        self._followed[job_id] = job
        return await self._store.update(job)

    async def _end(self, job_id: str, result: asyncio.Future[Landing], led: bool) -> None:
        job = self._followed[job_id]
        now = self._clock()
        landing = None
        try:
            landing = result.result()
        except EncoreError as error:
            job = job.failed(error.code, error.message, now)
        except Exception as error:
            logger.exception("job %s failed", job_id)
            job = job.failed("internal_error", f"The render failed: {type(error).__name__}.", now)
        else:
            if landing.stored:
                job = job.completed(landing.outcome_for(led), landing.embedding, now)
            else:
                job = job.failed("not_stored", "The video was made, but no storage could take it.", now)
        self._ended(job, landing)
        if await self._store.update(job):
            self._keep(job)

    def _keep(self, job: Job) -> None:
        self._finished[job.id] = job
        self._finished.move_to_end(job.id)
        if len(self._finished) > KEPT_FINISHED:
            self._finished.popitem(last=False)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run in an empty context: under Ray Serve a task would otherwise be cancelled with its request."""
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task
