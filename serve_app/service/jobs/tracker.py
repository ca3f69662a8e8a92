"""Jobs as clients see them: accepted, followed to their end, listed, deleted.

The tracker keeps the newest state of the jobs this process follows, and finished ones, so that a content hit asks no
other tier. A record is written when a job comes, starts and ends; in between one heartbeat a second stands for all. In
the same round it adopts orphans, jobs whose follower died (a killed replica, a restart): an accepted job needs no
reader to be rendered.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from serve_app.clock import steady
from serve_app.core import Progress, RenderEvent, Retried, Started
from serve_app.errors import EncoreError, NotStored, Unavailable
from serve_app.flight.cluster_flight import ClusterFlight
from serve_app.flight.result import FlightResult, not_stored
from serve_app.service.jobs.idempotency import Mark
from serve_app.service.jobs.job import Job, Order, Page, unknown
from serve_app.service.jobs.store import JobStore
from serve_app.service.jobs.sweeper import Chore, PeriodicTasks, Sweeper
from serve_app.service.jobs.write_behind import WriteBehind
from serve_app.tasks import TaskSet

logger = logging.getLogger(__name__)

ADOPTED_AT_ONCE = 16
"""Orphans that one round adopts, so that the jobs of a dead router spread over those that live."""
KEPT_FINISHED = 20_000
UNSTORED_SECONDS = 3600.0
"""For how long a job goes on whose video no storage takes; then it fails."""
UNSTORED_PAUSES = (2.0, 60.0)
"""Seconds before it is tried again: at first, and at most."""


@dataclass(slots=True, eq=False)
class _Following:
    """A job that this process sees to its end, with its flight, on which it counts as a waiter."""

    job: Job
    flight: ClusterFlight
    led: bool
    deleted: bool = False
    task: asyncio.Task[None] = field(init=False)

    def wait_on(self, flight: ClusterFlight, led: bool) -> None:
        """Take another flight of the same video, as one of its waiters; the last one has ended."""
        self.flight.release()
        self.flight, self.led = flight, led
        flight.hold()


class JobTracker:
    """The jobs of one router.

    `join_or_lead` starts or joins the flight of a job's video; `room` tells how many orphans may be adopted now;
    `ended` hears of every job followed to its end here. chores: done now and then in a round (`PeriodicTasks`).
    """

    def __init__(
        self,
        store: JobStore,
        join_or_lead: Callable[[Job], tuple[ClusterFlight, bool]],
        *,
        room: Callable[[], int],
        ended: Callable[[Job, FlightResult | None], None],
        chores: Sequence[Chore] = (),
        clock: Callable[[], float] = steady,
    ) -> None:
        self._store = store
        self._join_or_lead = join_or_lead
        self._room = room
        self._ended = ended
        self._clock = clock
        self._write_behind = WriteBehind(store)
        self._sweeper = Sweeper((self._write_behind.flush, self._beat, self._adopt, PeriodicTasks(chores)))
        self._followed: dict[str, _Following] = {}
        self._finished: OrderedDict[str, Job] = OrderedDict()
        self._watchers: dict[str, list[Callable[[], None]]] = {}
        self._background = TaskSet()
        self._forgotten = self._adopted = self._entering = 0

    def __len__(self) -> int:
        return len(self._followed) + self._entering

    def start(self) -> None:
        """Begin the rounds; the first call of anything else does it too."""
        self._sweeper.start()

    async def recall(self, mark: Mark) -> str | None:
        """Return the id of the job that answers a repeated request; raises KeyReused, Unavailable."""
        return await self._store.recall(mark)

    def take_place(self) -> Callable[[], None]:
        """Keep a place for a job that will be accepted when what comes first is awaited; returns what gives it back."""
        self._entering += 1

        def give_back() -> None:
            self._entering -= 1

        return give_back

    async def accept(self, job: Job, mark: Mark) -> str:
        """Store a new job and start following it; when this returns, the job will be answered, whatever dies.

        Returns its id, or that of an earlier job that answers the mark. A caller that is cancelled meanwhile (a client
        that hung up) leaves a job that is followed like any other. Raises KeyReused, Unavailable.
        """
        self.start()
        flight, led = self._join_or_lead(job)
        flight.hold()  # the job counts as a waiter from here, so the flight cannot linger away before its follower runs
        self._entering += 1
        return await asyncio.shield(self._background.spawn(self._enter(job, mark, flight, led)))

    async def accept_complete(self, job: Job, mark: Mark) -> str:
        """Store a job that was complete when it came, with its mark; returns as `accept` does.

        When the store is away the job stands by its id alone, and a repeat is another one: raises only KeyReused.
        """
        try:
            accepted = await self._store.accept(job, mark)
        except Unavailable:
            self.file(job)
            return job.id
        if accepted == job.id:
            self._keep(job)
        return accepted

    def file(self, job: Job) -> None:
        """Keep a job that was complete when it came; its record is written behind the answer."""
        self.start()
        self._keep(job)
        if self._write_behind.file(job):
            self._background.spawn(self._write_filed())

    async def find(self, job_id: str) -> Job | None:
        """Return the newest state that this process knows, else the record's; None if there is none or it expired.

        Raises NotFound if it was deleted, Unavailable.
        """
        self.start()
        job = self._known(job_id)
        if job is None:
            forgotten = self._forgotten
            job = await self._write_behind.get(job_id)
            if job is not None and job.status.is_final and forgotten == self._forgotten:
                self._keep(job)  # else it may have been deleted while we read
        return None if job is None or self._clock() >= job.expires_at else job

    def follows(self, job_id: str) -> bool:
        """Tell whether this process sees the job to its end, and so knows its newest state."""
        return job_id in self._followed

    def watch(self, job_id: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` when this process learns anything of the job, until the returned function is called."""
        self._watchers.setdefault(job_id, []).append(wake)

        def unwatch() -> None:
            self._watchers[job_id].remove(wake)
            if not self._watchers[job_id]:
                del self._watchers[job_id]

        return unwatch

    async def page(self, *, after: str | None, limit: int, order: Order) -> Page:
        """Return one page of jobs, those known here in their newest state; raises NotFound, Unavailable."""
        self.start()
        page = await self._store.page(after=after, limit=limit, order=order)
        return Page(tuple(self._known(job.id) or job for job in page.jobs), page.has_more)

    async def delete(self, job_id: str) -> None:
        """Delete the job; its render ends at the next step unless others wait. NotFound if unknown."""
        known = self.forget(job_id)
        if not await self._write_behind.delete(job_id, known=known) and not known:
            raise unknown(job_id)
        self.forget(job_id)  # a reader may have kept it while the store was asked
        self._tell(job_id)  # a reader that was woken by the first one may have found the record still there

    def forget(self, job_id: str) -> bool:
        """Drop a deleted job: from memory, and from those that are followed. Tell whether this process knew it."""
        self._forgotten += 1
        finished = self._finished.pop(job_id, None) is not None
        return self._stop(job_id, deleted=True) or finished

    def stats(self) -> dict[str, int]:
        """Return how many jobs are followed and kept here, were adopted, and have yet to be written."""
        return {
            "followed": len(self._followed),
            "finished_kept": len(self._finished),
            "adopted": self._adopted,
            "unwritten": len(self._write_behind),
        }

    async def aclose(self) -> None:
        """Stop following, write what is owed, close the store; unfinished jobs are adopted by another replica."""
        await self._sweeper.aclose()
        while self._followed or self._background:  # a job that is just being accepted is followed first
            for job_id in list(self._followed):
                self._stop(job_id, deleted=False)
            await self._background.settled()
        try:
            await self._write_behind.flush()
        except Unavailable as error:
            logger.warning("%d changes of jobs could not be written: %s", len(self._write_behind), error)
        await self._store.aclose()

    def _known(self, job_id: str) -> Job | None:
        following = self._followed.get(job_id)
        if following is not None:
            return following.job
        if job_id in self._finished:
            self._finished.move_to_end(job_id)  # what is asked for stays; a flood of others must not push it out
        return self._finished.get(job_id)

    async def _write_filed(self) -> None:
        try:
            await self._write_behind.write_filed()
        except Unavailable as error:
            logger.debug("hits are not listed yet: %s", error)  # the next round tries again

    async def _enter(self, job: Job, mark: Mark, flight: ClusterFlight, led: bool) -> str:
        accepted = ""
        try:
            accepted = await self._store.accept(job, mark)
            if accepted == job.id:
                self._follow(job, flight, led)
        finally:
            self._entering -= 1
            flight.release(at_once=accepted != job.id)
        return accepted

    async def _beat(self) -> None:
        """Tell that the followed jobs are; stop with those that were deleted or ended elsewhere, restore lost ones."""
        if not self._followed:
            return
        for job_id in await self._store.beat(list(self._followed)):
            following = self._followed.get(job_id)
            kept = None if following is None else await self._store.update(following.job)
            if following is None or self._followed.get(job_id) is not following:
                continue  # it ended here meanwhile
            if kept is None:
                self.forget(job_id)
            elif kept.status.is_final:
                self._stop(job_id, deleted=False)
                self._keep(kept)

    async def _adopt(self) -> None:
        room = min(ADOPTED_AT_ONCE, self._room())
        if room <= 0:
            return
        self._entering += room  # what is claimed must be followed: no other job may take the places meanwhile
        try:
            orphans = await self._store.claim(room)
        finally:
            self._entering -= room
        for job in orphans:
            if job.id not in self._followed and not job.status.is_final:
                logger.warning("adopting orphaned job %s", job.id)
                self._adopted += 1
                self._follow(job, *self._join_or_lead(job))

    def _follow(self, job: Job, flight: ClusterFlight, led: bool) -> None:
        following = self._followed[job.id] = _Following(job, flight, led)
        flight.hold()
        flight.watch(lambda event: self._hear(job.id, event))
        following.task = self._background.spawn(self._see_through(following))
        # Not in the task's own `finally`: one that is cancelled before its first step never gets there.
        following.task.add_done_callback(lambda _: following.flight.release(at_once=following.deleted))

    def _hear(self, job_id: str, event: RenderEvent) -> None:
        following = self._followed.get(job_id)
        if following is None:
            return
        before = following.job
        if isinstance(event, Started):
            following.job = before.started(event.embedding)
        elif isinstance(event, Progress):
            following.job = before.at_step(event.step, event.total)
        elif isinstance(event, Retried):
            following.job = replace(before, attempts=max(before.attempts, event.attempts))
        if (following.job.status, following.job.attempts) != (before.status, before.attempts):
            following.job = replace(following.job, updated_at=self._clock())
            self._write_behind.owe(following.job)
        if following.job != before:
            self._tell(job_id)

    async def _see_through(self, following: _Following) -> None:
        """Follow one job to its end. Cancelled means deleted, ended elsewhere, or closing."""
        flight_result = None
        try:
            flight_result = await self._result(following)
        except Exception as error:
            job = self._failed(following.job, error)
        else:
            job = self._completed(following, flight_result)
        kept = await self._write_behind.update(job)
        if self._followed.pop(job.id, None) is None:
            return  # deleted while its end was written
        if kept is not None:
            self._keep(kept)
        if kept is job:
            self._ended(job, flight_result)
        self._tell(job.id)

    async def _result(self, following: _Following) -> FlightResult:
        """Return how the job's flight ends. A video that no storage took is tried again for UNSTORED_SECONDS.

        The next flight finds it in this router's memory, where the video still is, and has only to store it; elsewhere
        it is rendered again.
        """
        pause, longest = UNSTORED_PAUSES
        end = self._clock() + UNSTORED_SECONDS
        while True:
            unstored = not_stored()
            try:
                flight_result = await following.flight.result()
                if flight_result.stored:
                    return flight_result
            except NotStored as error:
                unstored = error
            if self._clock() >= end:
                raise unstored
            logger.warning("no storage takes the video of job %s; trying again in %.0f s", following.job.id, pause)
            await asyncio.sleep(pause)
            pause = min(longest, 2 * pause)
            following.wait_on(*self._join_or_lead(following.job))
            following.flight.watch(lambda event: self._hear(following.job.id, event))

    def _completed(self, following: _Following, flight_result: FlightResult) -> Job:
        return following.job.completed(flight_result.outcome_for(following.led), flight_result.embedding, self._clock())

    def _failed(self, job: Job, error: Exception) -> Job:
        if isinstance(error, EncoreError):
            return job.failed(error.code, error.message, self._clock())
        logger.error("job %s failed", job.id, exc_info=error)
        return job.failed("internal_error", f"The render failed: {type(error).__name__}.", self._clock())

    def _stop(self, job_id: str, *, deleted: bool) -> bool:
        following = self._followed.pop(job_id, None)
        if following is None:
            return False
        following.deleted = deleted
        following.task.cancel()
        self._tell(job_id)
        return True

    def _tell(self, job_id: str) -> None:
        for wake in list(self._watchers.get(job_id, ())):
            wake()

    def _keep(self, job: Job) -> None:
        self._finished[job.id] = job
        self._finished.move_to_end(job.id)
        if len(self._finished) > KEPT_FINISHED:
            self._finished.popitem(last=False)
