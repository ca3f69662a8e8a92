"""Is anything that was accepted lost: by eviction, floods, clocks that step, planted frames, repeated deaths?

The second half of `outage.py`. Each case is a fresh server of parts in one process (outage_line.py) over real stores of
its own. Jobs are accepted, then the fault comes; every job must end `completed` with the video it must have. Clocks
step for real: the Valkey runs under libfaketime (Debian's package `libfaketime`), which moves its time as it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from outage_line import FIELDS, Line, open_line, video_of
from outage_planted import planted_frames
from outage_servers import Child, SteppingClock, valkey
from redis.asyncio import Redis

from serve_app.cache.storage_name import redis_name, storage_name
from serve_app.core import Progress, RenderEvent, RenderRequest
from serve_app.errors import EncoreError, ReplicaDied, TierError
from serve_app.flight.heartbeat import Heartbeat
from serve_app.schema import parse_request
from serve_app.service.jobs.job import Job
from serve_app.service.service import VideoService
from serve_app.settings import Settings
from serve_app.telemetry import Telemetry
from serve_app.wiring.tiers import open_flight_records

POLICIES = ("noeviction", "volatile-lru", "volatile-ttl", "volatile-random")
MEMORY = "40mb"
FLOOD_BYTES = 64 << 10
PATIENCE = 120.0
STEP_SECONDS = 900
DEATHS = 4


@dataclass
class Lost:
    """What became of the jobs of one case; `renders`: how many the router asked for; `seconds` until all had ended."""

    case: str
    accepted: int = 0
    completed: int = 0
    wrong: int = 0
    refused: int = 0
    renders: int = 0
    seconds: float = 0.0

    @property
    def lost(self) -> int:
        """How many accepted jobs did not end with their video."""
        return self.accepted - self.completed


class GatedLine(Line):
    """A line whose renders keep their flights alive as Diffusion does, and wait at their first step until `go`."""

    def __init__(self, settings: Settings, telemetry: Telemetry) -> None:
        super().__init__(settings, telemetry)
        self.go = asyncio.Event()
        self.running: dict[str, asyncio.Event] = {}
        self._records = open_flight_records(settings, self.processes[2])

    async def render(self, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        """Render as `Line` does, but step by step."""
        key, died = request.keys.video, asyncio.Event()
        self.running[key] = died
        beating = self._heartbeat(request)
        try:
            async for event in super().render(request):
                yield event
                if isinstance(event, Progress):
                    await _first(died, self.go)
                    if died.is_set():
                        raise ReplicaDied("The replica was killed.", retry_after=1)
        finally:
            self.running.pop(key, None)
            if beating is not None:
                beating.cancel()

    def kill(self) -> int:
        """Let every render that has begun die with its replica; return how many."""
        dying = list(self.running.values())
        for died in dying:
            died.set()
        return len(dying)

    def _heartbeat(self, request: RenderRequest) -> asyncio.Task[None] | None:
        if self._records is None or request.token is None:
            return None
        heartbeat = Heartbeat(
            self._records,
            request.keys.video,
            request.token,
            embedding="miss",
            stop=lambda: None,
            hurry=lambda urgency: None,
        )
        return asyncio.create_task(heartbeat.run())


async def _first(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when="FIRST_COMPLETED")
    finally:
        for wait in waits:
            wait.cancel()


@dataclass
class Case:
    """One server; `ids` are the jobs that it accepted."""

    service: VideoService
    line: GatedLine
    store: Child
    lost: Lost
    ids: list[str] = field(default_factory=list)

    async def accept(self, count: int, name: str) -> None:
        """Submit so many jobs of new videos."""
        for number in range(count):
            with suppress(EncoreError):
                job = await self.service.jobs.submit(parse_request({"prompt": f"{name} {number}"} | FIELDS))
                self.ids.append(job.id)
                continue
            self.lost.refused += 1

    async def finish(self) -> Lost:
        """Let renders go on, wait for every job, compare every video."""
        self.line.go.set()
        began = time.perf_counter()
        self.lost.accepted = len(self.ids)
        for job_id in self.ids:
            job = await self._ended(job_id, began + PATIENCE)
            if job is None or job.status != "completed":
                continue
            entry, _, _ = await self.service.jobs.content(job_id)
            right = entry.data == await asyncio.to_thread(video_of, job.spec, job.keys)
            self.lost.completed += right
            self.lost.wrong += not right
        self.lost.seconds = time.perf_counter() - began
        self.lost.renders = self.line.renders
        return self.lost

    async def _ended(self, job_id: str, deadline: float) -> Job | None:
        while time.perf_counter() < deadline:
            with suppress(EncoreError):
                job = await self.service.jobs.get(job_id)
                if job.status.is_final:
                    return job
            await asyncio.sleep(0.1)
        return None


@contextlib.asynccontextmanager
async def case_of(name: str, folder: Path, *options: str, clock: SteppingClock | None = None) -> AsyncIterator[Case]:
    """Start a server over a Valkey of its own that holds values and records."""
    with valkey(folder, *options, clock=clock) as store:
        settings = Settings(redis_url=f"unix://{store.address}", l3_url=(folder / "l3").as_uri(), max_queued=500)
        service, line = open_line(settings, Telemetry(), GatedLine)
        assert isinstance(line, GatedLine)
        try:
            yield Case(service, line, store, Lost(name))
        finally:
            line.go.set()
            await service.aclose()
            await line.aclose()


async def evicted(folder: Path, policy: str, flood: int) -> Lost:
    """Accept jobs at 40 MB, write values far beyond that, accept more jobs."""
    async with case_of(f"eviction, {policy}", folder, "--maxmemory", MEMORY, "--maxmemory-policy", policy) as case:
        await case.accept(50, f"before {policy}")
        tier = case.line.router.l2
        assert tier is not None
        value = bytes(FLOOD_BYTES)
        for number in range(flood):
            with suppress(TierError):
                await tier.set(redis_name(f"{number:064x}"), value, ttl=3600 + number)
        await case.accept(20, f"after {policy}")
        return await case.finish()


async def flooded(folder: Path, hits: int) -> Lost:
    """Ask so often for a known video as a job that records of hits fill the server; then accept jobs."""
    async with case_of("a flood of hits", folder, "--maxmemory", "20mb", "--maxmemory-policy", "noeviction") as case:
        case.line.go.set()
        known = parse_request({"prompt": "the known video"} | FIELDS)
        await case.service.generate(known)
        case.line.go.clear()
        await case.accept(10, "before the hits")
        for _ in range(hits):
            await case.service.jobs.submit(known)
        await case.accept(20, "after the hits")
        return await case.finish()


async def stepped(folder: Path, seconds: int) -> Lost:
    """Set the server's clock while jobs are rendered, let their replica die, set it back."""
    clock = SteppingClock(folder.with_suffix(".clock"))
    async with case_of(f"the clock steps by {seconds:+} s", folder, clock=clock) as case:
        await case.accept(10, f"step {seconds}")
        while len(case.line.running) < 10:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        clock.step(seconds)
        await asyncio.sleep(7)  # a lease and more: those that live must keep theirs
        case.lost.refused += case.line.renders - 10
        case.line.kill()
        await asyncio.sleep(1)
        clock.step(0)
        return await case.finish()


async def planted(folder: Path) -> Lost:
    """Plant frames under the names of the videos that are being rendered, in both tiers."""
    async with case_of("planted frames", folder) as case:
        frames = planted_frames("0" * 64, "0" * 64)
        await case.accept(len(frames), "planted")
        secret = Settings().secret_bytes
        async with Redis(unix_socket_path=str(case.store.address)) as redis:
            for job_id, kind in zip(case.ids, frames, strict=True):
                key = (await case.service.jobs.get(job_id)).keys.video
                name = storage_name(secret, "video", key)
                frame = planted_frames(name, key)[kind]
                await redis.set(redis_name(name), frame)
                if case.line.router.l3 is not None:
                    await case.line.router.l3.put(name, frame)
        return await case.finish()


async def killed(folder: Path) -> Lost:
    """Let the replica die four times over five jobs: outside kills, of which no job is guilty."""
    async with case_of(f"{DEATHS} deaths of the replica", folder) as case:
        await case.accept(5, "deaths")
        for _ in range(DEATHS):
            deadline = time.perf_counter() + 60
            while not case.line.kill() and time.perf_counter() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.5)
        return await case.finish()


def cases(folder: Path, quick: bool) -> Iterator[Callable[[], Awaitable[Lost]]]:
    """Yield what is to be run, one after the other."""
    for policy in POLICIES:
        yield lambda policy=policy: evicted(folder / policy, policy, 800 if quick else 1500)  # type: ignore[misc]
    yield lambda: flooded(folder / "hits", 5_000 if quick else 115_000)
    for seconds in (-STEP_SECONDS, STEP_SECONDS):
        yield lambda seconds=seconds: stepped(folder / f"step{seconds}", seconds)  # type: ignore[misc]
    yield lambda: planted(folder / "planted")
    yield lambda: killed(folder / "killed")


async def all_losses(folder: Path, quick: bool) -> list[Lost]:
    """Run every case."""
    return [await case() for case in cases(folder, quick)]
