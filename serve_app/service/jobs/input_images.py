"""The input images of jobs: an accepted job cannot be finished without them, so they live as long as a job needs them.

An image is kept before its job is accepted, in the store that keeps jobs, once for all jobs that start from it, and is
let go with the last of them; one that was never let go (its router died in between) is swept when its job has expired.
Their bytes are bounded: without room an image, and so its job, is refused at once. So no photo
of a client is kept for longer than it takes to render it, and there is nothing for an invalidation to look for.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from serve_app.cache.key import image_key
from serve_app.core import VideoSpec
from serve_app.errors import Busy, RenderFailed, Unavailable
from serve_app.service.jobs.job import Job
from serve_app.tasks import TaskSet

logger = logging.getLogger(__name__)

MAX_BYTES = 256 << 20


def full() -> Busy:
    """Return the error for an image that there is no room for."""
    return Busy(
        "The images of unfinished jobs fill the room there is for them (setting jobs_max_bytes, or the memory of their "
        "server); try again when some have ended.",
        retry_after=30,
    )


class InputImageStore(Protocol):
    """Images by key, each for the jobs that need it; every method raises Unavailable when it cannot be reached."""

    async def keep(self, key: str, job_id: str, data: bytes, seconds: float) -> None:
        """Keep an image for a job, at most so long; when this returns it survives this process, as the job does.

        Raises Busy when there is no room.
        """
        ...

    async def find(self, key: str) -> bytes | None:
        """Return an image, None when no job needs it any more."""
        ...

    async def release(self, key: str, job_id: str) -> None:
        """Say that a job needs its image no more; the last one's is deleted."""
        ...

    async def sweep(self) -> int:
        """Let go of images for jobs that have expired; return for how many."""
        ...


class MemoryInputImages:
    """Images in one process' memory, for job records that are there too."""

    def __init__(self, max_bytes: int = MAX_BYTES, clock: Callable[[], float] = time.time) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._images: dict[str, tuple[bytes, dict[str, float]]] = {}

    def __len__(self) -> int:
        return len(self._images)

    async def keep(self, key: str, job_id: str, data: bytes, seconds: float) -> None:
        """Keep an image until its last job has released it; raises Busy."""
        if key not in self._images:
            if sum(len(kept) for kept, _ in self._images.values()) + len(data) > self._max_bytes:
                raise full()
            self._images[key] = (data, {})
        jobs = self._images[key][1]
        jobs[job_id] = max(jobs.get(job_id, 0.0), self._clock() + seconds)

    async def find(self, key: str) -> bytes | None:
        """Return an image, None when no job needs it any more or it has expired."""
        data, jobs = self._images.get(key, (None, {}))
        return data if jobs and max(jobs.values()) > self._clock() else None

    async def release(self, key: str, job_id: str) -> None:
        """Say that a job needs its image no more."""
        if key in self._images:
            jobs = self._images[key][1]
            jobs.pop(job_id, None)
            if not jobs:
                del self._images[key]

    async def sweep(self) -> int:
        """Let go of images for jobs that have expired."""
        now = self._clock()
        expired = [(key, job) for key, (_, jobs) in self._images.items() for job, ends in jobs.items() if ends <= now]
        for key, job_id in expired:
            await self.release(key, job_id)
        return len(expired)


class InputImages:
    """One router's part in keeping them."""

    def __init__(self, store: InputImageStore) -> None:
        self._store = store
        self._fresh: dict[str, bytes] = {}
        self._accepting = TaskSet()
        self._releases = TaskSet()

    async def accepted(
        self, job: Job, data: bytes, accept: Callable[[], Awaitable[str]], done: Callable[[], None] = lambda: None
    ) -> str:
        """Keep the image of a job, then have it accepted; returns and raises what `accept` does, or Unavailable.

        done: called when that is over, also when the caller is gone.
        It goes on when the caller is cancelled (a client that hung up): there is a job then, or its image is let go.
        """
        work = self._accepting.spawn(self._accepted(job, data, accept), traced=True)
        work.add_done_callback(lambda _: done())
        work.add_done_callback(lambda done: self.release(job) if _id_of(done) != job.id else None)
        return await asyncio.shield(work)

    async def keep(self, job: Job, data: bytes) -> None:
        """Keep the image of a job that is about to be accepted; raises Unavailable."""
        await self._store.keep(image_key(job.spec), job.id, data, job.expires_at - job.created_at)
        self._fresh[job.id] = data

    def take(self, job: Job) -> bytes | None:
        """Return the image of a job that was kept here a moment ago, once: its render need not look for it."""
        return self._fresh.pop(job.id, None)

    async def find(self, spec: VideoSpec) -> bytes:
        """Return the image of a job that another process accepted; raises RenderFailed, Unavailable."""
        data = await self._store.find(image_key(spec))
        if data is None:
            raise RenderFailed("The image of this video is no longer kept; send it again.")
        return data

    def release(self, job: Job) -> None:
        """Let the image of a job go that has ended, or was not accepted; in the background."""
        self._fresh.pop(job.id, None)
        if job.spec.input_reference:
            self._releases.spawn(self._release(image_key(job.spec), job.id))

    async def settled(self) -> None:
        """Wait for jobs that are being accepted."""
        await self._accepting.settled()

    async def aclose(self) -> None:
        """Wait for what is being let go."""
        await self._releases.settled()

    async def _accepted(self, job: Job, data: bytes, accept: Callable[[], Awaitable[str]]) -> str:
        await self.keep(job, data)
        return await accept()

    async def _release(self, key: str, job_id: str) -> None:
        try:
            await self._store.release(key, job_id)
        except Unavailable as error:
            logger.debug("the image of job %s expires by itself: %s", job_id, error)


def _id_of(accepting: asyncio.Task[str]) -> str | None:
    """Return the id of the job that was accepted, None when none was."""
    return None if accepting.cancelled() or accepting.exception() is not None else accepting.result()
