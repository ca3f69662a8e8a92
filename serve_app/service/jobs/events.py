"""A job's life as it happens, for one reader: every change of state, every denoising step, the end.

Any replica can tell it. Where the job is followed, the tracker wakes the reader; elsewhere what the render
tells the whole cluster does, and because a message may be lost, the job's and the flight's record are read every second
as well. A position (phase, step) means the same everywhere and only grows, so a reader who comes back, to whatever
replica, is told what is new and nothing twice. A slow reader misses steps, never a state's newest word.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from serve_app.core import JobStatus
from serve_app.errors import NotFound, TierError, Unavailable
from serve_app.flight.record import FlightRecords, FlightState, FlightStatus
from serve_app.service.jobs.job import Job
from serve_app.service.jobs.store import ORPHAN_SECONDS
from serve_app.service.jobs.tracker import JobTracker

POLL_SECONDS = 1.0
ENDING_SECONDS = 0.1
"""How soon a job's record is read again when its render has ended, until its follower has written the end."""
IDLE_SECONDS = 15.0
LOST_SECONDS = 2 * ORPHAN_SECONDS
"""A record that was there and is not found for so long is lost (or expired), not just being written anew."""

Name = Literal["queued", "in_progress", "completed", "failed", "deleted"]
_PHASES: tuple[Name, ...] = get_args(Name)
_ID = re.compile(r"([0-4])\.(\d{1,9})", re.ASCII)


class Position(NamedTuple):
    """How far a job's story is told; its text is the event's id."""

    phase: int
    step: int

    def __str__(self) -> str:
        return f"{self.phase}.{self.step}"

    @classmethod
    def read(cls, text: str | None) -> Position | None:
        """Return the position that an event's id says, None for anything else."""
        found = _ID.fullmatch(text or "")
        return found and cls(int(found[1]), int(found[2]))

    @property
    def is_final(self) -> bool:
        """Whether nothing can come after it."""
        return self.phase >= _PHASES.index("completed")

    @property
    def is_deleted(self) -> bool:
        """Whether it is the end of a job that was deleted."""
        return self.phase == _PHASES.index("deleted")


@dataclass(frozen=True, slots=True)
class JobEvent:
    """What a reader is told: the job as it is now, and the seconds of denoising left, None when unknown."""

    name: Name
    position: Position
    job: Job
    eta_seconds: float | None


def with_status(job: Job, status: FlightStatus | None) -> Job:
    """Return an unfinished job as its flight has it; the end is for the job's record to tell."""
    if job.status.is_final or status is None or status.state is not FlightState.RENDERING:
        return job
    job = job.started(status.embedding)
    return job.at_step(status.step, status.total) if status.total else job


class JobEventFeed:
    """Tells jobs' lives from one router's tracker and the cluster's flight records."""

    def __init__(self, tracker: JobTracker, flight_records: FlightRecords | None) -> None:
        self._tracker = tracker
        self._flight_records = flight_records

    async def newest(self, job: Job) -> Job:
        """Return `job` with what its flight's record says, where this process does not follow it itself."""
        if self._flight_records is None or job.status.is_final or self._tracker.follows(job.id):
            return job
        try:
            return with_status(job, await self._flight_records.look(job.keys.video))
        except TierError:
            return job

    async def tell(self, job: Job, told: Position | None) -> AsyncIterator[JobEvent | None]:
        """Yield what comes after `told` (None: all), None whenever nothing did for IDLE_SECONDS; end with the job.

        It also ends, without a final event, when the record is lost for good.
        """
        clock = asyncio.get_running_loop().time
        view, pace, spoke = _View(job, clock), _Pace(clock), clock()
        with ExitStack() as listening:
            self._listen(view, listening)
            while True:
                name, position = view.where()
                if told is None or position > told:
                    told, spoke = position, clock()
                    yield JobEvent(name, position, view.job, pace.left(view.job))
                elif clock() - spoke >= IDLE_SECONDS:
                    spoke = clock()
                    yield None
                if position.is_final or view.is_lost():
                    return
                if await view.stirred():
                    await self._read(view)

    def _listen(self, view: _View, listening: ExitStack) -> None:
        listening.callback(self._tracker.watch(view.job.id, view.wake))
        if self._flight_records is not None and not self._tracker.follows(view.job.id):
            with suppress(TierError):
                listening.callback(self._flight_records.watch(view.job.keys.video, view.hear))

    async def _read(self, view: _View) -> None:
        try:
            job = await self._tracker.find(view.job.id)
        except NotFound:
            view.deleted = True
        except Unavailable:
            view.read(view.job)  # nothing new is known; messages and the next look may tell
        else:
            view.read(None if job is None else await self.newest(job))


class _View:
    """What one reader knows of one job."""

    def __init__(self, job: Job, clock: Callable[[], float]) -> None:
        self.job = job
        self.deleted = False
        self._clock = clock
        self._stir = asyncio.Event()
        self._status: FlightStatus | None = None
        self._read_at = self._seen_at = clock()
        self._pause = POLL_SECONDS

    def where(self) -> tuple[Name, Position]:
        """Return the state and the position in the story."""
        name: Name = "deleted" if self.deleted else self.job.status.value
        step = (self.job.step or 0) if name == "in_progress" else 0
        return name, Position(_PHASES.index(name), step)

    def wake(self) -> None:
        """Let `stirred` return: this process learned something."""
        self._read_at = float("-inf")
        self._stir.set()

    def hear(self, status: FlightStatus) -> None:
        """Take in what a render tells the cluster."""
        self._status = status
        self._pause = POLL_SECONDS if status.state.is_active else ENDING_SECONDS
        self._stir.set()

    async def stirred(self) -> bool:
        """Wait until something may be new; True when the records should be read to know what."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._pause):
                await self._stir.wait()
        self._stir.clear()
        self.job, self._status = with_status(self.job, self._status), None
        return self._clock() - self._read_at >= self._pause

    def read(self, job: Job | None) -> None:
        """Take in what the records say; they may be behind what was heard, and None is no record."""
        self._read_at = self._clock()
        if job is None:
            return
        self._seen_at = self._read_at
        known = self.job
        behind = not job.status.is_final and known.step is not None and known.total_steps is not None
        self.job = job.at_step(known.step or 0, known.total_steps or 0) if behind else job

    def is_lost(self) -> bool:
        """Whether there has been no record for longer than one that Redis lost is missing."""
        return self._clock() - self._seen_at >= LOST_SECONDS


class _Pace:
    """How fast a render goes, measured from the first step that was seen."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first: tuple[int, float] | None = None

    def left(self, job: Job) -> float | None:
        """Return the seconds of denoising left, None before a second step was seen."""
        if job.status is not JobStatus.IN_PROGRESS or job.total_steps is None:
            return None
        step, now = job.step or 0, self._clock()
        if self._first is None:
            self._first = (step, now)
        done = step - self._first[0]
        return round((job.total_steps - step) * (now - self._first[1]) / done, 2) if done > 0 else None
