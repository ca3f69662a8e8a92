"""The story of one request: plan it, look where it may be already, share a flight if not, render at last.

HTTP, Python handles, the client and the command line all end here. A hit in this process' memory is answered without
awaiting anything; everything else goes through one flight per key, in which the shared tiers are asked once for all who
wait. The words for how a request was answered are core.Outcome's.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from serve_app.cache.cache import TieredCache
from serve_app.cache.invalidation.sweep import RuleSweeper
from serve_app.cache.invalidation.sync import RuleSync
from serve_app.cache.redis.bloom_builder import BloomBuilder
from serve_app.clock import steady
from serve_app.core import Entry, JobStatus, Keys, Outcome, Rule, VideoSpec, described_spec
from serve_app.errors import ContentGone, InvalidRequest, NotCached, NotFound, Unavailable
from serve_app.flight.attempts import MAX_ATTEMPTS, Attempts
from serve_app.flight.cluster_flight import ClusterFlight
from serve_app.flight.record import FlightRecords
from serve_app.flight.renderer import Renderer
from serve_app.flight.result import FlightResult
from serve_app.media.variant import Variant
from serve_app.prompt.typos import Correction
from serve_app.schema import VideoRequest
from serve_app.schema.invalidation import InvalidationRequest
from serve_app.service.counts import summed
from serve_app.service.invalidator import Invalidator
from serve_app.service.jobs.events import JobEvent, JobEventFeed, Position
from serve_app.service.jobs.idempotency import FIRST, Mark, RequestAttempt, mark_of
from serve_app.service.jobs.input_images import InputImages, InputImageStore, MemoryInputImages
from serve_app.service.jobs.job import Job, Order, Page, unknown
from serve_app.service.jobs.signed_id import issue, new_job_id, read
from serve_app.service.jobs.store import JobStore
from serve_app.service.jobs.tracker import JobTracker
from serve_app.service.loader import VideoLoader
from serve_app.service.peers import Peers
from serve_app.service.periodic_tasks import Chore
from serve_app.service.plan import Plan, Planner
from serve_app.service.planning_threads import Planning
from serve_app.service.thumbnails import Thumbnails
from serve_app.service.warmup.store import MemoryWarmUps, WarmStore
from serve_app.service.warmup.warmup import Warming
from serve_app.tasks import detached
from serve_app.telemetry import Answered, Telemetry

PROBE_SECONDS = 5.0
_KEY = re.compile(r"[0-9a-f]{64}")
_TELLING_SECONDS = 0.5  # a renderer that is busy starting must not hold up who asks what it renders


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one router takes on: renders it started, requests that wait for one (and as many jobs that do), those
    of warm-ups, and for how long records live."""

    max_queued: int = 64
    max_waiting: int = 1_500
    linger_seconds: float = 30.0
    job_ttl_seconds: float = 7 * 86_400
    warm_up_renders: int = 8
    max_attempts: int = MAX_ATTEMPTS


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished video and how it came; `seconds` is what the caller waited, `corrected` what was taken for slips.

    notice: what the model may not have done as it was asked.
    """

    entry: Entry
    outcome: Outcome
    keys: Keys
    spec: VideoSpec
    embedding: str | None
    stored: bool
    seconds: float
    corrected: tuple[Correction, ...] = ()
    notice: str | None = None


class VideoService:
    """One router's service; `cache` holds videos, `latents` what they are decoded from, `renderer` makes the rest.

    flights: the cluster's flight records; without them this router is alone. builder: keeps L3's Bloom filter built.
    rules: keeps the invalidations that the caches know; without it only routers that are told by their peers know of
    one. sweeper: deletes what they cover. images: keeps what unfinished jobs start from, as durably as `jobs` does.
    attempts: counts renders that ended in the death of their process, as durably too. chores: what else is to be done
    for the records now and then. close_records: called when nothing asks them any more. batch_invariant: whether videos
    depend on their request alone; None: the renderer's stats say it.
    """

    def __init__(
        self,
        planner: Planner,
        cache: TieredCache,
        renderer: Renderer,
        jobs: JobStore,
        *,
        secret: bytes,
        telemetry: Telemetry,
        peers: Peers,
        latents: TieredCache | None = None,
        flights: FlightRecords | None = None,
        builder: BloomBuilder | None = None,
        rules: RuleSync | None = None,
        sweeper: RuleSweeper | None = None,
        warm_ups: WarmStore | None = None,
        images: InputImageStore | None = None,
        attempts: Attempts | None = None,
        chores: Sequence[Chore] = (),
        close_records: Chore | None = None,
        limits: Limits | None = None,
        batch_invariant: bool | None = None,
        clock: Callable[[], float] = steady,
    ) -> None:
        self.planner = planner
        self._planning = Planning(planner)
        images = MemoryInputImages(clock=clock) if images is None else images
        warm_ups = MemoryWarmUps(clock) if warm_ups is None else warm_ups
        self._images = InputImages(images)
        self._close_records = close_records
        self._cache = cache
        self._renderer = renderer
        self._batch_invariant = batch_invariant
        self._secret = secret
        self._telemetry = telemetry
        self._peers = peers
        self._builder = builder
        self._limits = limits or Limits()
        self._clock = clock
        self._source = VideoLoader(
            cache,
            renderer,
            planner.card.model_fingerprint,
            max_queued=self._limits.max_queued,
            linger_seconds=self._limits.linger_seconds,
            flight_records=flights,
            find_image=self._images.find,
            attempts=attempts,
            max_attempts=self._limits.max_attempts,
            clock=clock,
        )
        self._invalidator = Invalidator(
            rules or RuleSync(cache.rules), planner, cache, renderer, peers, latents=latents, sweeper=sweeper
        )
        self._rules = cache.rules
        self._desk = JobTracker(
            jobs,
            self._board_job,
            room=self._room,
            ended=self._job_ended,
            chores=(*chores, jobs.sweep, images.sweep, warm_ups.sweep),
            clock=clock,
        )
        self.warming = Warming(
            warm_ups,
            planner,
            self._source,
            cache,
            self._board_warm_up,
            concurrency=min(self._limits.warm_up_renders, self._limits.max_queued),
            keep_seconds=self._limits.job_ttl_seconds,
            max_prompt_chars=planner.max_prompt_chars,
            clock=clock,
        )
        self._storyteller = JobEventFeed(self._desk, flights)
        self._pictures = Thumbnails()
        self._waiting = 0
        self._probed: tuple[asyncio.Task[None], float] | None = None
        self._outcomes: Counter[str] = Counter()

    def start(self) -> None:
        """Begin looking for jobs and warm-ups that nobody follows, on the running event loop; the first does it too.

        And to hear of invalidations, which the first look into a shared tier does too.
        """
        self._desk.start()
        self._invalidator.start()
        if self._builder is not None:
            self._builder.start()
        self.warming.start()
        self._probe()

    async def readiness(self) -> dict[str, Any]:
        """Return whether all works that this router was given, and what does not; requests are answered all the same.

        The shared tiers are asked again at most every PROBE_SECONDS.
        """
        await asyncio.wait({self._probe()}, timeout=PROBE_SECONDS)
        broken = self._cache.broken()
        return {"status": "degraded" if broken else "ok", "broken": broken}

    def _probe(self) -> asyncio.Task[None]:
        now = time.monotonic()
        if self._probed is None or now - self._probed[1] > PROBE_SECONDS:
            self._probed = detached(self._cache.probe()), now
        return self._probed[0]

    async def check_cached(self, request: VideoRequest) -> None:
        """Raise NotCached unless a tier has the video that `request` means, so that a job for it renders nothing."""
        await self._check_cached(await self._planning.plan(request))

    async def generate(self, request: VideoRequest, *, only_if_cached: bool = False) -> Answer:
        """Return the video that `request` means, from wherever it comes soonest.

        Raises Busy over the limits, RenderFailed, Unavailable when nobody could render it for long, what planning
        raises (Unprocessable, NotFound), and NotCached where it should come from a tier `only_if_cached`.
        """
        began = time.perf_counter()
        plan = await self._planning.plan(request)
        if only_if_cached:
            await self._check_cached(plan)
        found = self._source.now(plan.keys)
        self._invalidator.asked(plan, None if found is None else found.entry)
        if found is not None:
            return self._answer(plan, found, True, began)
        if self._waiting >= self._limits.max_waiting:
            raise self._source.busy("requests are waiting")
        self._waiting += 1
        try:
            found = await self._source.overflow(plan.keys)
            if found is not None:
                return self._answer(plan, found, True, began)
            labels = self._invalidator.labels(plan)
            flight, led = self._source.join_or_lead(plan.spec, plan.keys, plan.urgency, labels=labels, image=plan.image)
            flight_result = await flight.wait_interruptibly()
        except Exception:
            self._outcomes["failed"] += 1
            self._telemetry.emit(Answered("failed", time.perf_counter() - began, 0))
            raise
        finally:
            self._waiting -= 1
        return self._answer(plan, flight_result, led, began)

    async def submit(self, request: VideoRequest, attempt: RequestAttempt = FIRST) -> Job:
        """Accept `request` as a job and return it at once, completed already if this router has the video.

        A request that an earlier try of the same client has made already gets that one's job. Raises Busy over the
        limits, KeyReused, Unavailable when no durable tier could keep the result or the job.
        """
        began = time.perf_counter()
        plan = await self._planning.plan(request)
        first = await self._planning.aside(request, lambda: mark_of(self._secret, request, attempt))
        mark: Mark | None = None
        if attempt.may_repeat:
            mark = first
            earlier = await self._earlier(mark)
            if isinstance(earlier, Job):
                return earlier
            mark = earlier
        found = await self._ready(plan.keys)
        self._invalidator.asked(plan, None if found is None else found.entry)
        if found is not None:
            return await self._submit_hit(plan, found, mark, began)
        now = round(self._clock(), 6)  # as its id says it
        job = Job(
            id=new_job_id(now), prompt=plan.asked, spec=plan.spec, keys=plan.keys,
            created_at=now, updated_at=now, expires_at=now + self._limits.job_ttl_seconds,
            corrected=plan.corrected, urgency=plan.urgency, tags=plan.tags, metadata=plan.metadata,
            notice=plan.notice,
        )  # fmt: skip
        return await self.job(await self._accepted(job, mark or first, plan.image))

    async def job(self, job_id: str) -> Job:
        """Return the newest state of a job; raises NotFound, ContentGone when its video is lost, Unavailable."""
        return await self._newest(await self._known(job_id))

    async def events(self, job_id: str, last_id: str | None = None) -> AsyncIterator[JobEvent | None] | None:
        """Return what happens to a job from now on, or after the event `last_id`; None when that was the last.

        Raises as `job` does, before anything is told.
        """
        told = Position.read(last_id)
        try:
            job = await self._known(job_id)
            if told is not None and told.is_final:
                if job.status.is_final:
                    return None
                told = None
            return self._storyteller.tell(await self._newest(job), told)
        except NotFound:
            if told is not None and told.is_deleted:
                return None
            raise

    async def jobs(self, *, after: str | None, limit: int, order: Order) -> Page:
        """Return one page of jobs; raises NotFound if `after` is unknown."""
        return await self._desk.page(after=after, limit=limit, order=order)

    async def delete(self, job_id: str) -> None:
        """Delete a job, never its video: others may have the same one. Raises NotFound."""
        job = await self._known(job_id)
        await self._desk.delete(job.id)
        self._images.release(job)
        await self._peers.forget((), (job_id,))

    async def content(self, job_id: str, variant: Variant = Variant.VIDEO) -> tuple[Entry, Job, Outcome]:
        """Return a completed job's video, or a picture of it, and the tier that the video came from.

        Raises NotFound for an unknown job and one that is not completed, ContentGone for one whose video is lost; for
        a picture also what `Thumbnails.get` raises.
        """
        entry, job, outcome = await self._video(job_id)
        return await self._pictures.get(entry, variant), job, outcome

    async def location(self, job_id: str, disposition: str | None = None) -> tuple[str, Job] | None:
        """Return a URL where the client itself finds a completed job's video, None when it is to ask for `content`.

        disposition: the Content-Disposition of the answer there. Raises NotFound for an unknown job.
        """
        job = await self._known(job_id)
        if job.error_code is not None or job.outcome is None:
            return None
        url = await self._cache.location(job.keys.video, disposition)
        return None if url is None else (url, job)

    async def explain(self, request: VideoRequest) -> dict[str, Any]:
        """Return what `request` means, its keys, and which tier holds its video; renders nothing."""
        plan = await self._planning.plan(request)
        tiers = await self._cache.where(plan.keys.video)
        return plan.explained() | {"tiers": tiers, "batch_invariant": await self.batch_invariant()}

    async def batch_invariant(self) -> bool | None:
        """Tell whether a video depends on its request alone, not on its company; None while no renderer could say."""
        if self._batch_invariant is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_TELLING_SECONDS):
                    self._batch_invariant = (await self._renderer.stats()).get("batch_invariant")
        return self._batch_invariant

    async def invalidate(self, key: str) -> dict[str, Any]:
        """Delete the video of `key`, and its latents, from every tier and every router's memory.

        Asked for again it is rendered anew. Raises InvalidRequest, and Unavailable when that can be recorded nowhere.
        """
        if not _KEY.fullmatch(key):
            raise InvalidRequest("'key' must be the 64 hex digits of a video's key.", param="key")
        done = await self._invalidator.key(key)
        self._pictures.forget(key)
        await self._peers.forget((key,), ())
        return {"key": key, "deleted": list(done.deleted)}

    async def invalidate_where(self, request: InvalidationRequest) -> dict[str, Any]:
        """Let what `request` chooses count as not there, everywhere within a second, and delete it.

        A render of it that is under way ends for those who wait for it already, and nobody else. Raises what
        `Invalidator.invalidate` does.
        """
        done = await self._invalidator.invalidate(request)
        if request.key is not None:
            self._pictures.forget(request.key)
            await self._peers.forget((request.key,), ())
        return done.wire()

    def learn(self, rules: tuple[Rule, ...]) -> None:
        """Take in invalidations; a peer tells of them."""
        self._rules.learn(rules)

    def forget(self, keys: tuple[str, ...], job_ids: tuple[str, ...]) -> None:
        """Drop videos and deleted jobs from this process' memory, and follow those no further; a peer asked for it."""
        for key in keys:
            self._cache.forget(key)
            self._pictures.forget(key)
        for job_id in job_ids:
            self._desk.forget(job_id)

    def counts(self) -> dict[str, Any]:
        """Return what this router alone has counted, which peers' counts can be added to."""
        return {
            "outcomes": dict(self._outcomes),
            "flights": len(self._source),
            "waiting": self._waiting,
            "jobs": self._desk.stats(),
        }

    async def stats(self) -> dict[str, Any]:
        """Return counts of this router and its tiers, the sums over all routers, and what the renderer tells.

        `router` says whose counts they are: its name, and of how many routers; None where the others cannot be asked.
        """
        name, everyone = await self._peers.counts()
        return {
            "router": {"id": name, "of": len(everyone) or None},
            "model": self.planner.card.name,
            **self.counts(),
            "all_routers": summed(everyone),
            "warm_ups": self.warming.stats(),
            "cache": self._cache.stats(),
            "pictures": self._pictures.stats(),
            "invalidation": self._invalidator.stats(),
            "renderer": await self._renderer.stats(),
        }

    async def aclose(self) -> None:
        """Finish background writes and close the tiers."""
        self._pictures.close()
        self._planning.close()
        if self._builder is not None:
            await self._builder.aclose()
        await self.warming.aclose()
        await self._images.settled()
        await self._desk.aclose()
        await self._images.aclose()
        await self._source.aclose()
        await self._invalidator.aclose()
        await self._cache.aclose()
        if self._close_records is not None:
            await self._close_records()

    async def _check_cached(self, plan: Plan) -> None:
        if await self._cache.get(plan.keys.video) is None:
            raise NotCached("No tier has this video, and Cache-Control: only-if-cached forbids to render it.")

    def _board_job(self, job: Job) -> tuple[ClusterFlight, bool]:
        labels = self._invalidator.labels_of(job.spec, job.keys, job.tags)
        image = self._images.take(job)
        return self._source.join_or_lead(
            job.spec,
            job.keys,
            job.urgency,
            asked_at=job.created_at,
            labels=labels,
            image=image,
            attempts=job.attempts,
        )

    def _board_warm_up(self, plan: Plan, ttl: float) -> tuple[ClusterFlight, bool]:
        labels = self._invalidator.labels(plan)
        return self._source.join_or_lead(plan.spec, plan.keys, plan.urgency, ttl=ttl, labels=labels)

    async def _accepted(self, job: Job, mark: Mark, image: bytes | None) -> str:
        """Accept a job, and before it the image that finishing it takes; return as `JobTracker.accept` does."""
        if image is None:
            return await self._desk.accept(job, mark)

        async def accept() -> str:
            await self._source.overflow(job.keys)  # its place may have been taken while the image was written
            return await self._desk.accept(job, mark)

        return await self._images.accepted(job, image, accept, self._desk.take_place())

    def _room(self) -> int:
        """Return how many orphaned jobs may be adopted: they take places like any others."""
        return min(self._limits.max_waiting - len(self._desk), self._limits.max_queued - len(self._source))

    async def _earlier(self, mark: Mark) -> Job | Mark:
        """Return the job of an earlier try, or the mark to leave when there is none that still answers anything."""
        try:
            job_id = await self._desk.recall(mark)
        except Unavailable:  # a hit can be answered even so, and of anything else `accept` says it
            return mark
        if job_id is None:
            return mark
        try:
            return await self.job(job_id)
        except NotFound:  # deleted, expired, or its video is gone
            return replace(mark, instead_of=job_id)

    async def _submit_hit(self, plan: Plan, found: FlightResult, mark: Mark | None, began: float) -> Job:
        """Return a job that is complete already; it is written before the answer only where a retry must find it."""
        now = round(self._clock(), 6)
        job = self._receipt_job(
            issue(self._secret, plan.keys.video, now), plan.asked, plan.spec, plan.keys, now, found.outcome
        )
        job = replace(
            job, corrected=plan.corrected, urgency=plan.urgency, tags=plan.tags, metadata=plan.metadata,
            notice=plan.notice,
        )  # fmt: skip
        if mark is None:
            self._desk.file(job)
        elif (accepted := await self._desk.accept_complete(job, mark)) != job.id:
            return await self.job(accepted)
        self._count(found.outcome, began, found.entry.size)
        return job

    async def _known(self, job_id: str) -> Job:
        """Return a job by its record, or a hit's by its id, which needs no record; raises NotFound, Unavailable."""
        try:
            job = await self._desk.find(job_id)
        except Unavailable:
            if read(self._secret, job_id) is None:
                raise
            job = None
        return job if job is not None else await self._from_receipt(job_id)

    async def _newest(self, job: Job) -> Job:
        """Return a job as it is by now; raises ContentGone when its video is lost."""
        if job.status is JobStatus.COMPLETED:
            await self._check_content(job)
        return await self._storyteller.newest(job)

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

    async def _ready(self, keys: Keys) -> FlightResult | None:
        """Return the stored video that a job is complete with at once; None means that it may board a flight.

        Raises Unavailable without a durable tier, Busy over the limits.
        """
        found = self._source.now(keys)
        if found is not None and found.stored:
            return found
        # A video that only this process has is stored, at last, by the flight that finds it.
        if not await self._cache.can_store(keys.video):
            raise self._no_storage()
        if len(self._desk) >= self._limits.max_waiting:
            raise self._source.busy("jobs are waiting")
        found = await self._source.overflow(keys)
        if found is not None and not found.stored:
            raise self._source.busy("renders are queued")
        return found

    async def _from_receipt(self, job_id: str) -> Job:
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
        job = self._receipt_job(job_id, spec.prompt, spec, keys, receipt.created_at, Outcome.L1)
        self._desk.file(job)
        return job

    def _receipt_job(
        self, job_id: str, prompt: str, spec: VideoSpec, keys: Keys, created_at: float, outcome: Outcome
    ) -> Job:
        job = Job(
            id=job_id, prompt=prompt, spec=spec, keys=keys, created_at=created_at, updated_at=created_at,
            expires_at=created_at + self._limits.job_ttl_seconds, notice=self.planner.notice(spec),
        )  # fmt: skip
        return job.completed(outcome, None, created_at)

    def _job_ended(self, job: Job, flight_result: FlightResult | None) -> None:
        self._images.release(job)
        outcome = "failed" if job.outcome is None else job.outcome
        self._outcomes[outcome] += 1
        size = 0 if flight_result is None else flight_result.entry.size
        self._telemetry.emit(Answered(outcome, self._clock() - job.created_at, size))

    def _answer(self, plan: Plan, flight_result: FlightResult, led: bool, began: float) -> Answer:
        outcome = flight_result.outcome_for(led)
        seconds = self._count(outcome, began, flight_result.entry.size)
        return Answer(
            flight_result.entry,
            outcome,
            plan.keys,
            plan.spec,
            flight_result.embedding,
            flight_result.stored,
            seconds,
            plan.corrected,
            plan.notice,
        )

    def _count(self, outcome: Outcome, began: float, size: int) -> float:
        seconds = time.perf_counter() - began
        self._outcomes[outcome] += 1
        self._telemetry.emit(Answered(outcome, seconds, size))
        return seconds


def _content_gone(job_id: str) -> ContentGone:
    return ContentGone(f"The content of video '{job_id}' is no longer stored.", param="video_id")
