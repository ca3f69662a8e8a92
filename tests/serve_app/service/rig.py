"""A whole router in one process: real planner, tiers, flights, and jobs over a renderer that tests steer.

`ScriptedRenderer` stands where the GPU would: it reports real progress as it is let on, stores what it made through
a real VideoWriter-like cache, and fails or stalls when told to. Everything above it is the product's own code.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve_app import tasks as detaching
from serve_app.cache.cache import TieredCache
from serve_app.cache.invalidation.object_rules import ObjectRules
from serve_app.cache.invalidation.redis_rules import RedisRules
from serve_app.cache.invalidation.rules import Labels, RuleBook, provenance
from serve_app.cache.invalidation.sweep import ObjectShelf, RedisShelf, RuleSweeper
from serve_app.cache.invalidation.sync import RuleSync
from serve_app.cache.memory import MemoryTier
from serve_app.cache.objects.folder import FolderStore
from serve_app.cache.redis.redis import RedisTier
from serve_app.core import (
    Entry,
    Finished,
    JobStatus,
    Keys,
    Progress,
    RenderEvent,
    RenderRequest,
    Rule,
    Started,
    Urgency,
    described,
)
from serve_app.errors import RenderCancelled
from serve_app.flight.record import FlightRecords
from serve_app.model.families import load_family
from serve_app.model.model import Family
from serve_app.model.native.config import DEMO_SIZES
from serve_app.schema import VideoRequest, parse_request, resolve
from serve_app.service.assembly import assemble
from serve_app.service.jobs.input_images import InputImageStore, MemoryInputImages
from serve_app.service.jobs.job import Job
from serve_app.service.jobs.redis_input_images import RedisInputImages
from serve_app.service.jobs.redis_store import RedisJobs
from serve_app.service.jobs.store import JobStore, MemoryJobs
from serve_app.service.parts import Limits
from serve_app.service.plan import Plan, Planner
from serve_app.service.records import Records
from serve_app.service.service import VideoService
from serve_app.service.warmup.redis_store import RedisWarmUps
from serve_app.service.warmup.store import MemoryWarmUps, WarmStore
from serve_app.telemetry import Event, Telemetry

SECRET = b"a test's secret"
SMALLEST, LARGEST = (f"{width}x{height}" for width, height in (min(DEMO_SIZES), max(DEMO_SIZES)))
"""Of the sizes that the demo offers."""
TINY = {"size": SMALLEST, "num_frames": 8, "num_inference_steps": 2}


def ask(prompt: str = "a red circle moves left", **fields: Any) -> VideoRequest:
    """A request as the wire would give it."""
    return parse_request({"prompt": prompt} | fields)


def a_plan(prompt: str) -> Plan:
    """What a request for `prompt` means, with its keys."""
    return Planner(load_family("native/demo"), "encoder", max_prompt_chars=500).plan(ask(prompt, **TINY))


SPEC = resolve(ask(), load_family("native/demo").card)
NOW = time.time()


def a_job(number: int = 0, **fields: Any) -> Job:
    """The record of a job `number` seconds old or young."""
    created = NOW + number
    keys = Keys("a" * 64, "b" * 64, "c" * 64, f"{number:064x}")
    standard = {"created_at": created, "updated_at": created, "expires_at": created + 3600}
    return Job(
        **{"id": f"video_{number}", "prompt": "p\u00e9 \U0001f600", "spec": SPEC, "keys": keys} | standard | fields
    )


def redis_jobs(url: str, events: list[Event], *, patience: float = 0.5, clock: Clock | None = None) -> RedisJobs:
    """Job records in Redis over connections of their own, given up after `patience`."""
    tier = RedisTier(url, connect_timeout=patience, socket_timeout=patience, deadline=4 * patience)
    return RedisJobs(tier, secret=SECRET, telemetry=Telemetry(events.append), clock=clock)


class ScriptedRenderer:
    """Renders `video of KEY`, or `data`, in `total` steps, as far as `allow` lets it; `store` takes the result."""

    def __init__(self, store: TieredCache, total: int = 4) -> None:
        self.total = total
        self.asked: list[str] = []
        self.requests: list[RenderRequest] = []
        self.data: bytes | None = None
        self.meta: dict[str, Any] = {}
        self.cancelled: list[str] = []
        self.promoted: list[tuple[str, Urgency]] = []
        self.failure: Exception | None = None
        self._store = store
        self._steps = asyncio.Semaphore(0)
        self._held = False
        self._cancels: dict[str, asyncio.Event] = {}

    def hold(self) -> None:
        """From now on every step waits for `allow`."""
        self._held = True

    def allow(self, steps: int = 1000) -> None:
        """Let so many steps pass."""
        for _ in range(steps):
            self._steps.release()

    async def render(self, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        """Started, one Progress a step, Finished."""
        key = request.keys.video
        self.asked.append(key)
        self.requests.append(request)
        stop = self._cancels[key] = asyncio.Event()
        began = time.perf_counter()
        yield Started("miss")
        for step in range(1, self.total + 1):
            if self._held:
                await self._step_or(stop)
            if stop.is_set():
                raise RenderCancelled("The render was cancelled.")
            if self.failure is not None:
                raise self.failure
            yield Progress(step, self.total)
        data = f"video of {key}".encode() * 20 if self.data is None else self.data
        self._store.rules.learn(request.rules)
        meta = {"spec": described(request.spec), **provenance(request.begun_at, request.labels), **self.meta}
        not_before = self._store.rules.not_before(request.labels)
        stored = await self._store.put(Entry.of(key, data, meta), not_before=not_before)
        yield Finished(stored.entry, stored.tiers, time.perf_counter() - began, 0.0)

    async def _step_or(self, stop: asyncio.Event) -> None:
        ways = [asyncio.ensure_future(self._steps.acquire()), asyncio.ensure_future(stop.wait())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()

    async def cancel(self, key: str) -> None:
        """Note who was cancelled, and end it."""
        self.cancelled.append(key)
        if key in self._cancels:
            self._cancels[key].set()

    async def drop_latents(self, key: str) -> None:
        """It writes none."""

    def promote(self, key: str, urgency: Urgency) -> None:
        """Note who is in a hurry."""
        self.promoted.append((key, urgency))

    async def stats(self) -> dict[str, Any]:
        """How many renders were asked for."""
        return {"asked": len(self.asked)}


class Peers:
    """Other routers in this process: what one forgets, all forget."""

    def __init__(self) -> None:
        self.services: list[VideoService] = []

    async def forget(self, keys: tuple[str, ...], job_ids: tuple[str, ...]) -> None:
        """Tell everybody."""
        for service in self.services:
            service.forget(keys, job_ids)

    async def learn(self, rules: tuple[Rule, ...]) -> None:
        """Tell everybody."""
        for service in self.services:
            service.learn(rules)

    async def counts(self) -> tuple[str, list[dict[str, Any]]]:
        """Ask everybody."""
        return "router-1", [service.counts() for service in self.services]


@dataclass
class Clock:
    """Unix time that tests move."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Rig:
    """Routers over one folder and, if there is a URL, one Redis; `events` is what they all emitted."""

    folder: Path | None
    redis_url: str | None = None
    events: list[Event] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    peers: Peers = field(default_factory=Peers)
    pools: list[RedisTier] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.telemetry = Telemetry(self.events.append)
        self.renderer = ScriptedRenderer(self.cache(l1=False))

    def rules(self, *, deaf: bool = False) -> RuleSync:
        """What keeps one router's invalidations, looking when it is told to and when a test says `sync`.

        deaf: its messages are lost.
        """
        redis = self.redis()
        kept = None if redis is None else RedisRules(redis, secret=SECRET)
        if kept is not None and deaf:
            kept.watch = lambda changed: None  # type: ignore[method-assign]
        mirror = None if self.folder is None else ObjectRules(FolderStore(self.folder), secret=SECRET)
        return RuleSync(RuleBook(Labels(SECRET)), kept, mirror, poll_seconds=3600.0)

    def sweeper(self, sync: RuleSync) -> RuleSweeper:
        """What sweeps for a router, when a test says `round`."""
        redis = self.redis()
        shelves: list[Any] = [] if redis is None else [RedisShelf(redis, secret=SECRET)]
        shelves += [] if self.folder is None else [ObjectShelf(FolderStore(self.folder), secret=SECRET)]
        return RuleSweeper(sync, shelves)

    def cache(self, *, l1: bool = True, kind: Any = "video", rules: RuleBook | None = None) -> TieredCache:
        """A process' view of the shared tiers."""
        return TieredCache(
            kind,
            secret=SECRET,
            l1=MemoryTier(1 << 22) if l1 else None,
            l2=self.redis(),
            l3=None if self.folder is None else FolderStore(self.folder, max_bytes=1 << 28),
            rules=rules,
            telemetry=self.telemetry,
            clock=self.clock,
        )

    def latents(self, rules: RuleBook | None = None) -> TieredCache:
        """Where a process keeps latents: in L3 alone."""
        store = None if self.folder is None else FolderStore(self.folder, max_bytes=1 << 28)
        return TieredCache("latents", secret=SECRET, l3=store, rules=rules, telemetry=self.telemetry, clock=self.clock)

    def redis(self) -> RedisTier | None:
        """A connection pool of its own, as each process has one."""
        if self.redis_url is None:
            return None
        self.pools.append(RedisTier(self.redis_url))
        return self.pools[-1]

    def jobs(self) -> JobStore:
        """Job records where this rig keeps them."""
        redis = self.redis()
        if redis is None:
            return MemoryJobs(clock=self.clock)
        return RedisJobs(redis, secret=SECRET, telemetry=self.telemetry, clock=self.clock)

    def images(self) -> InputImageStore:
        """The images of jobs where this rig keeps them."""
        redis = self.redis()
        return (
            MemoryInputImages() if redis is None else RedisInputImages(redis, secret=SECRET, telemetry=self.telemetry)
        )

    def warm_ups(self) -> WarmStore:
        """Warm-ups where this rig keeps them."""
        redis = self.redis()
        if redis is None:
            return MemoryWarmUps(clock=self.clock)
        return RedisWarmUps(redis, secret=SECRET, telemetry=self.telemetry, clock=self.clock)

    def service(
        self,
        *,
        jobs: JobStore | None = None,
        secret: bytes = SECRET,
        renderer: Any = None,
        family: Family | None = None,
        flights: FlightRecords | None = None,
        rules: RuleSync | None = None,
        warm_ups: WarmStore | None = None,
        images: InputImageStore | None = None,
        **limits: Any,
    ) -> VideoService:
        """One more router."""
        service = assemble(
            Planner(family or load_family("native/demo"), "encoder", max_prompt_chars=500, clock=self.clock),
            self.cache(rules=None if rules is None else rules.book),
            renderer or self.renderer,
            Records(
                self.jobs() if jobs is None else jobs,
                self.images() if images is None else images,
                self.warm_ups() if warm_ups is None else warm_ups,
            ),
            secret=secret,
            telemetry=self.telemetry,
            peers=self.peers,
            latents=None if self.folder is None else self.latents(None if rules is None else rules.book),
            flight_records=flights,
            rules=rules,
            limits=Limits(**({"linger_seconds": 0.05} | limits)),
            clock=self.clock,
        )
        self.peers.services.append(service)
        return service

    async def aclose(self) -> None:
        """Let every render go and close every router."""
        self.renderer.allow()
        for service in self.peers.services:
            await service.aclose()
        await left_behind()
        for pool in self.pools:
            await pool.client.aclose()


async def left_behind() -> None:
    """Wait for tasks that outlive a service, as renders do, then end them: their process would be gone.

    What they asked of Redis after its connections were closed would open one that nobody closes.
    """
    here = asyncio.get_running_loop()
    tasks = {task for task in detaching._alive if task.get_loop() is here}
    if tasks:
        _, running = await asyncio.wait(tasks, timeout=0.2)
        await asyncio.gather(*map(detaching.end, running))


async def until(true: Callable[[], bool | Awaitable[bool]], seconds: float = 30.0) -> None:
    """Wait for something that happens soon; `true` may be a coroutine function."""
    async with asyncio.timeout(seconds):
        # Looked at from outside, as a client would: there is no event to wait for.
        while not (await now if isinstance(now := true(), Awaitable) else now):  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def ended(service: VideoService, job: Job) -> Job:
    """Poll as a client would until the job is final."""
    async with asyncio.timeout(30):
        while not job.status.is_final:
            await asyncio.sleep(0.002)
            job = await service.jobs.get(job.id)
    return job


async def reached(service: VideoService, job: Job, status: JobStatus, progress: int = 0) -> Job:
    """Poll until the job shows `status` and at least `progress`."""
    async with asyncio.timeout(30):
        while job.status is not status or job.progress < progress:
            await asyncio.sleep(0.002)
            job = await service.jobs.get(job.id)
    return job
