"""Jobs as clients see them: accepted, read, listed, deleted, their events told and their videos handed out.

An accepted job is on record before the client hears of it, and is rendered whatever process dies. A request whose video
is stored already becomes a job that is complete at once: its signed id stands for its record, so a hit writes nothing
before the answer.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace

from serve_app.core import Entry, JobStatus, Keys, Outcome, VideoSpec, described_spec
from serve_app.errors import ContentGone, NotFound, Unavailable
from serve_app.flight.cluster_flight import ClusterFlight
from serve_app.flight.record import FlightRecords
from serve_app.flight.result import FlightResult
from serve_app.media.variant import Variant
from serve_app.schema import VideoRequest
from serve_app.service.jobs.events import JobEvent, JobEventFeed, Position
from serve_app.service.jobs.idempotency import FIRST, Mark, RequestAttempt, mark_of
from serve_app.service.jobs.input_images import InputImages
from serve_app.service.jobs.job import Job, Order, Page, unknown
from serve_app.service.jobs.signed_id import issue, new_job_id, read
from serve_app.service.jobs.tracker import JobTracker
from serve_app.service.parts import RouterParts
from serve_app.service.plan import Plan
from serve_app.service.records import Records
from serve_app.service.thumbnails import Thumbnails


class Jobs:
    """The jobs of one router; `images` are their input images, which the router's loader finds too."""

    def __init__(
        self,
        parts: RouterParts,
        records: Records,
        images: InputImages,
        *,
        secret: bytes,
        flight_records: FlightRecords | None = None,
    ) -> None:
        self._parts = parts
        self._cache = parts.cache
        self._loader = parts.loader
        self._limits = parts.limits
        self._clock = parts.clock
        self._images = images
        self._secret = secret
        self._tracker = JobTracker(
            records.jobs,
            self._join_or_lead,
            room=self._room,
            ended=self._ended,
            chores=(*records.chores, records.jobs.sweep, records.images.sweep, records.warm_ups.sweep),
            clock=parts.clock,
        )
        self._event_feed = JobEventFeed(self._tracker, flight_records)
        self._thumbnails = Thumbnails()

    def start(self) -> None:
        """Begin to adopt jobs that no process follows, on the running event loop; the first call does it too."""
        self._tracker.start()

    async def submit(self, request: VideoRequest, attempt: RequestAttempt = FIRST) -> Job:
        """Accept `request` as a job and return it at once, completed already if this router has the video.

        A request that an earlier try of the same client has made already gets that one's job. Raises Busy over the
        limits, KeyReused, Unavailable when no durable tier could keep the result or the job.
        """
        began = time.perf_counter()
        planning = self._parts.planning
        plan = await planning.plan(request)
        first = await planning.aside(request, lambda: mark_of(self._secret, request, attempt))
        mark: Mark | None = None
        if attempt.may_repeat:
            earlier = await self._earlier(first)
            if isinstance(earlier, Job):
                return earlier
            mark = earlier
        found = await self._ready(plan.keys)
        self._parts.invalidator.asked(plan, None if found is None else found.entry)
        if found is not None:
            return await self._submit_hit(plan, found, mark, began)
        now = round(self._clock(), 6)  # as its id says it
        job = Job(
            id=new_job_id(now), prompt=plan.asked, spec=plan.spec, keys=plan.keys,
            created_at=now, updated_at=now, expires_at=now + self._limits.job_ttl_seconds,
            corrected=plan.corrected, urgency=plan.urgency, tags=plan.tags, metadata=plan.metadata,
            notice=plan.notice,
        )  # fmt: skip
        return await self.get(await self._accepted(job, mark or first, plan.image))

    async def get(self, job_id: str) -> Job:
        """Return the newest state of a job; raises NotFound, ContentGone when its video is lost, Unavailable."""
        return await self._newest(await self._known(job_id))

    async def events(self, job_id: str, last_id: str | None = None) -> AsyncIterator[JobEvent | None] | None:
        """Return what happens to a job from now on, or after the event `last_id`; None when that was the last.

        Raises as `get` does, before anything is told.
        """
        told = Position.read(last_id)
        try:
            job = await self._known(job_id)
            if told is not None and told.is_final:
                if job.status.is_final:
                    return None
                told = None
            return self._event_feed.tell(await self._newest(job), told)
        except NotFound:
            if told is not None and told.is_deleted:
                return None
            raise

    async def page(self, *, after: str | None, limit: int, order: Order) -> Page:
        """Return one page of jobs; raises NotFound if `after` is unknown."""
        return await self._tracker.page(after=after, limit=limit, order=order)

    async def delete(self, job_id: str) -> None:
        """Delete a job, never its video: others may have the same one. Raises NotFound."""
        job = await self._known(job_id)
        await self._tracker.delete(job.id)
        self._images.release(job)
        await self._parts.peers.forget((), (job_id,))

    async def content(self, job_id: str, variant: Variant = Variant.VIDEO) -> tuple[Entry, Job, Outcome]:
        """Return a completed job's video, or a picture of it, and the tier that the video came from.

        Raises NotFound for an unknown job and one that is not completed, ContentGone for one whose video is lost; for
        a picture also what `Thumbnails.get` raises.
        """
        entry, job, outcome = await self._video(job_id)
        return await self._thumbnails.get(entry, variant), job, outcome

    async def location(self, job_id: str, disposition: str | None = None) -> tuple[str, Job] | None:
        """Return a URL where the client itself finds a completed job's video, None when it is to ask for `content`.

        disposition: the Content-Disposition of the answer there. Raises NotFound for an unknown job.
        """
        job = await self._known(job_id)
        if job.error_code is not None or job.outcome is None:
            return None
        url = await self._cache.location(job.keys.video, disposition)
        return None if url is None else (url, job)

    def forget(self, job_id: str) -> None:
        """Drop a deleted job from this process' memory and follow it no further; a peer asked for it."""
        self._tracker.forget(job_id)

    def forget_video(self, key: str) -> None:
        """Drop the thumbnails of key(video)."""
        self._thumbnails.forget(key)

    def stats(self) -> dict[str, int]:
        """Return what `JobTracker.stats` does."""
        return self._tracker.stats()

    def thumbnail_stats(self) -> dict[str, int]:
        """Return what `Thumbnails.stats` does."""
        return self._thumbnails.stats()

    async def aclose(self) -> None:
        """Wait for jobs that are being accepted, write what is owed, close the stores of jobs and images."""
        self._thumbnails.close()
        await self._images.settled()
        await self._tracker.aclose()
        await self._images.aclose()

    # Accepting.

    async def _accepted(self, job: Job, mark: Mark, image: bytes | None) -> str:
        """Accept a job, and before it the image that its render takes; return as `JobTracker.accept` does."""
        if image is None:
            return await self._tracker.accept(job, mark)

        async def accept() -> str:
            await self._loader.overflow(job.keys)  # its place may have been taken while the image was written
            return await self._tracker.accept(job, mark)

        return await self._images.accepted(job, image, accept, self._tracker.take_place())

    async def _earlier(self, mark: Mark) -> Job | Mark:
        """Return the job of an earlier try, or the mark to leave when there is none that still answers anything."""
        try:
            job_id = await self._tracker.recall(mark)
        except Unavailable:  # a hit can be answered even so, and of anything else `accept` says it
            return mark
        if job_id is None:
            return mark
        try:
            return await self.get(job_id)
        except NotFound:  # deleted, expired, or its video is gone
            return replace(mark, instead_of=job_id)

    async def _ready(self, keys: Keys) -> FlightResult | None:
        """Return the stored video that a job is complete with at once; None means that it may join or lead a flight.

        Raises Unavailable without a durable tier, Busy over the limits.
        """
        found = self._loader.now(keys)
        if found is not None and found.stored:
            return found
        # A video that only this process has is stored, at last, by the flight that finds it.
        if not await self._cache.can_store(keys.video):
            raise self._no_storage()
        if len(self._tracker) >= self._limits.max_waiting:
            raise self._loader.busy("jobs are waiting")
        found = await self._loader.overflow(keys)
        if found is not None and not found.stored:
            raise self._loader.busy("renders are queued")
        return found

    def _no_storage(self) -> Unavailable:
        if self._cache.storeless:
            return Unavailable(
                "This server has no storage, which a job's video needs: its operator sets ENCORE_REDIS_URL or "
                "ENCORE_L3_URL. /v1/videos/sync works without.",
                retry_after=60,
            )
        if any(each["reason"] == "misconfigured" for each in self._cache.broken()):
            return Unavailable(
                "This server's storage refuses it, which its operator must mend (see /readyz); try /v1/videos/sync.",
                retry_after=60,
            )
        return Unavailable("No storage can take the video of a job; try /v1/videos/sync.", retry_after=5)

    async def _submit_hit(self, plan: Plan, found: FlightResult, mark: Mark | None, began: float) -> Job:
        """Return a job that is complete already; it is written before the answer only where a retry must find it."""
        now = round(self._clock(), 6)
        job = self._complete_job(
            issue(self._secret, plan.keys.video, now), plan.asked, plan.spec, plan.keys, now, found.outcome
        )
        job = replace(
            job, corrected=plan.corrected, urgency=plan.urgency, tags=plan.tags, metadata=plan.metadata,
            notice=plan.notice,
        )  # fmt: skip
        if mark is None:
            self._tracker.file(job)
        elif (accepted := await self._tracker.accept_complete(job, mark)) != job.id:
            return await self.get(accepted)
        self._parts.outcomes.count(found.outcome, time.perf_counter() - began, found.entry.size)
        return job

    # Following.

    def _join_or_lead(self, job: Job) -> tuple[ClusterFlight, bool]:
        """Return the flight of a job's video, and whether the job leads it."""
        return self._loader.join_or_lead(
            job.spec,
            job.keys,
            job.urgency,
            asked_at=job.created_at,
            labels=self._parts.invalidator.labels_of(job.spec, job.keys, job.tags),
            image=self._images.take(job),
            attempts=job.attempts,
        )

    def _room(self) -> int:
        """Return how many orphaned jobs may be adopted: they take places like any others."""
        return min(self._limits.max_waiting - len(self._tracker), self._limits.max_queued - len(self._loader))

    def _ended(self, job: Job, result: FlightResult | None) -> None:
        self._images.release(job)
        size = 0 if result is None else result.entry.size
        self._parts.outcomes.count(job.outcome, self._clock() - job.created_at, size)

    # Reading.

    async def _known(self, job_id: str) -> Job:
        """Return a job by its record, or a hit's by its id, which needs no record; raises NotFound, Unavailable."""
        try:
            job = await self._tracker.find(job_id)
        except Unavailable:
            if read(self._secret, job_id) is None:
                raise
            job = None
        return job if job is not None else await self._from_signed_id(job_id)

    async def _newest(self, job: Job) -> Job:
        """Return a job as it is by now; raises ContentGone when its video is lost."""
        if job.status is JobStatus.COMPLETED:
            await self._check_content(job)
        return await self._event_feed.newest(job)

    async def _check_content(self, job: Job) -> None:
        """Raise ContentGone when every tier says that it has not got the video of a completed job."""
        if not self._cache.contains_now(job.keys.video) and not any(
            has is None or has for has in (await self._cache.where(job.keys.video)).values()
        ):
            raise _content_gone(job.id)

    async def _video(self, job_id: str) -> tuple[Entry, Job, Outcome]:
        job = await self._known(job_id)
        if job.error_code is not None:
            raise NotFound(f"Video '{job.id}' failed: {job.error_message}", param="video_id")
        if job.outcome is None:
            raise NotFound(f"Video '{job.id}' is not ready yet: {job.status}, {job.progress} %.", param="video_id")
        entry = self._cache.get_now(job.keys.video)
        if entry is not None:
            return entry, job, Outcome.L1
        found = await self._cache.get(job.keys.video)
        if found is None:
            raise _content_gone(job.id)
        return found[0], job, found[1]

    async def _from_signed_id(self, job_id: str) -> Job:
        receipt = read(self._secret, job_id)
        if receipt is None or self._clock() >= receipt.created_at + self._limits.job_ttl_seconds:
            raise unknown(job_id)
        found = await self._cache.get(receipt.key)
        if found is None:
            raise _content_gone(job_id)
        try:
            spec = described_spec(found[0].meta.get("spec"))
        except ValueError:  # stored by a release whose spec had other fields
            raise unknown(job_id) from None
        keys = Keys("", "", "", receipt.key)
        job = self._complete_job(job_id, spec.prompt, spec, keys, receipt.created_at, Outcome.L1)
        self._tracker.file(job)
        return job

    def _complete_job(
        self, job_id: str, prompt: str, spec: VideoSpec, keys: Keys, created_at: float, outcome: Outcome
    ) -> Job:
        job = Job(
            id=job_id, prompt=prompt, spec=spec, keys=keys, created_at=created_at, updated_at=created_at,
            expires_at=created_at + self._limits.job_ttl_seconds, notice=self._parts.planner.notice(spec),
        )  # fmt: skip
        return job.completed(outcome, None, created_at)


def _content_gone(job_id: str) -> ContentGone:
    return ContentGone(f"The content of video '{job_id}' is no longer stored.", param="video_id")
