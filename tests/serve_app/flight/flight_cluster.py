"""A cluster in one thread: real routers' sources and real render workers, with Redis, L3, network and GPU played.

Redis is the FlightModel that the Lua scripts were tested against, the GPU an engine whose steps take virtual seconds;
all else between a client's wait and the stored file is the product's own code. `Cluster` can do to it what happens to
clusters, and remembers what it must know to judge them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from aiocache.base import BaseCache
from aiocache.serializers import NullSerializer

from serve_app.cache.breaker import Breaker
from serve_app.cache.cache import TieredCache
from serve_app.cache.memory import MemoryTier
from serve_app.cache.storage_name import storage_name
from serve_app.core import Finished, Frames, Keys, Outcome, RenderEvent, RenderRequest, Urgency, VideoSpec
from serve_app.engine.engine import Rendering
from serve_app.engine.isolation import Isolation
from serve_app.errors import Conflict, EncoreError, RenderFailed, ReplicaDied, TierError, Unavailable
from serve_app.flight import cluster_flight
from serve_app.flight.attempts import End, MemoryAttempts
from serve_app.flight.record import LEASE_SECONDS, FlightState, FlightStatus, Hear, JoinResult, Leading
from serve_app.flight.result import FlightResult
from serve_app.render import video_encoding
from serve_app.render.text_encoding import PromptEmbeds
from serve_app.render.video_encoding import VideoWriter
from serve_app.render.worker import RenderWorker
from serve_app.service import loader
from serve_app.service.loader import VideoLoader
from serve_app.service.queue import RenderQueue
from serve_app.telemetry import Telemetry
from tests.serve_app.flight.flight_model import Air, FlightModel, Link, MemoryFlightRecords
from tests.virtual_time import Process, World

T = TypeVar("T")

SECRET = b"s"
LINGER = 3.0
EMBEDS: Any = PromptEmbeds([[0.0]], [[0.0]], "miss")  # type: ignore[arg-type]
PLACES = 2
"""Renders that a Diffusion replica takes at a time; more wait in the router."""
SPEC = VideoSpec(
    model="m", prompt="p", negative_prompt="", seed=1, width=8, height=8, num_frames=1, fps=1,
    num_inference_steps=1, guidance_scale=1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """What a cluster is made of; `steps` of `step_seconds` is a render."""

    routers: int = 2
    diffusions: int = 1
    keys: int = 1
    steps: int = 3
    step_seconds: float = 0.5
    has_l3: bool = True


@dataclass(eq=False)
class Wait:
    """One client: what it asked where and when, and what became of it."""

    key: str
    router: Process
    asked_at: float
    flight_result: FlightResult | None = None
    error: BaseException | None = None
    left: bool = False
    ended_at: float | None = None

    @property
    def is_over(self) -> bool:
        return self.ended_at is not None or not self.router.alive


@dataclass(eq=False)
class Render:
    """One run of the engine."""

    key: str
    diffusion: Process
    router: Process
    asked_at: float
    began_at: float
    token: int | None
    ended: bool = False
    died: bool = False


class Shelf(dict[str, bytes]):
    """What a store holds, and since when."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self.since: dict[str, float] = {}

    def __setitem__(self, key: str, value: bytes) -> None:
        if key not in self:
            self.since[key] = self._world.now
        super().__setitem__(key, value)


class Records(FlightModel):
    """The specification's Redis, which also judges: only the newest token of a key may ever change its record."""

    def __init__(self, world: World, **options: Any) -> None:
        super().__init__(**options)
        self.newest: dict[str, int] = {}
        self.leads: Counter[str] = Counter()
        self.values = Shelf(world)
        self._world = world

    def join_or_lead(self, now: int, key: str, *args: Any) -> JoinResult:
        known = key in self.records
        join_result = super().join_or_lead(now, key, *args)
        if isinstance(join_result, Leading):
            # A Redis that forgot the record and whose clock was set back gives a smaller one: tokens fence by equality.
            assert join_result.token > self.newest.get(key, 0) or not known
            self.newest[key] = join_result.token
            self.leads[key] += 1
        return join_result

    def end(self, now: int, key: str, token: int, state: FlightState, detail: str, frame: bytes | None) -> bool:
        known = key in self.records
        written = super().end(now, key, token, state, detail, frame)
        if known and written != (token == self.newest[key]):
            self._world.errors.append(f"{state} under {token} of {self.newest[key]} took effect: {written}")
        if not known:
            self.newest[key] = token  # forgotten: whoever comes first holds it again
        return written

    def beat(self, now: int, key: str, token: int, news: FlightStatus, elapsed: int = 0) -> Any:
        if key not in self.records:
            self.newest[key] = token
        return super().beat(now, key, token, news, elapsed)


@dataclass
class Redis:
    """Up or away, deaf or clear, and what it holds."""

    world: World
    model: Records
    clock_off: float = 0.0
    away_until: float = 0.0
    deaf_until: float = 0.0
    mute_until: float = 0.0
    air: Air = field(default_factory=Air)

    @property
    def is_up(self) -> bool:
        return self.world.now >= self.away_until

    def serve(self, step: Callable[[], T]) -> T:
        """Do one step if it is up; while it is mute, do it and lose the answer."""
        if not self.is_up:
            raise TierError("Redis is away.")
        result = step()
        if self.world.now < self.mute_until and self.world.random.random() < 0.5:
            raise TierError("The answer was lost.")
        return result


class RedisLink(Link):
    """The way of one process to Redis, with the breaker that RedisFlightRecords has."""

    def __init__(self, redis: Redis, process: Process) -> None:
        self._redis = redis
        self._process = process
        self._breaker = Breaker("l2/flight", clock=process.loop.time)
        self._heard_at = 0.0

    async def call(self, step: Callable[[], T]) -> T:
        with self._breaker.attempt():
            return await self._process.ask(lambda: self._redis.serve(step))

    def hear(self, hear: Hear, news: FlightStatus) -> None:
        world = self._redis.world
        if world.now < self._redis.deaf_until:
            return
        self._heard_at = max(self._heard_at, world.now + world.latency())
        world.after(self._heard_at - world.now, lambda: self._process.post(hear, news))


class Flights(MemoryFlightRecords):
    """MemoryFlightRecords whose subscriptions take a while to begin."""

    def __init__(self, redis: Redis, process: Process) -> None:
        self._world = redis.world
        super().__init__(
            redis.model,
            redis.air,
            lambda: 1e6 + self._world.now + redis.clock_off,
            RedisLink(redis, process),
            lambda: self._world.now,
        )

    def watch(self, key: str, hear: Hear) -> Callable[[], None]:
        stops: list[Callable[[], None]] = []
        wanted = True

        def begin() -> None:
            if wanted:
                stops.append(super(Flights, self).watch(key, hear))

        def stop() -> None:
            nonlocal wanted
            wanted = False
            for each in stops:
                each()

        self._world.after(self._world.latency(), begin)
        return stop


class RedisValues(BaseCache):  # type: ignore[misc]
    """The L2 of one process, by storage name, over the values that the flight scripts read and write."""

    def __init__(self, redis: Redis, process: Process, keys: dict[str, str]) -> None:
        super().__init__(serializer=NullSerializer(encoding=None), timeout=None, ttl=None)
        self._redis = redis
        self._process = process
        self._keys = keys

    async def _do(self, step: Callable[[Shelf], T]) -> T:
        return await self._process.ask(lambda: self._redis.serve(lambda: step(self._redis.model.values)))

    async def _get(self, key: str, encoding: Any = None, _conn: Any = None) -> Any:
        return await self._do(lambda values: values.get(self._keys[key[-64:]]))

    async def _set(self, key: str, value: bytes, ttl: Any = None, _cas_token: Any = None, _conn: Any = None) -> bool:
        await self._do(lambda values: values.__setitem__(self._keys[key[-64:]], value))
        return True

    async def _delete(self, key: str, _conn: Any = None) -> int:
        return await self._do(lambda values: int(values.pop(self._keys[key[-64:]], None) is not None))

    async def _exists(self, key: str, _conn: Any = None) -> bool:
        return await self._do(lambda values: self._keys[key[-64:]] in values)

    async def _expire(self, key: str, ttl: float, _conn: Any = None) -> bool:
        return await self._exists(key)


class Objects:
    """The L3 of one process: write-once."""

    def __init__(self, shelf: Shelf, process: Process, keys: dict[str, str]) -> None:
        self._shelf = shelf
        self._process = process
        self._keys = keys

    async def get(self, name: str) -> bytes | None:
        return await self._process.ask(lambda: self._shelf.get(self._keys[name]))

    async def put(self, name: str, data: bytes) -> bytes | None:
        def step() -> bytes:
            if self._keys[name] not in self._shelf:
                self._shelf[self._keys[name]] = data
            return self._shelf[self._keys[name]]

        return await self._process.ask(step)

    async def delete(self, name: str) -> bool:
        return await self._process.ask(lambda: self._shelf.pop(self._keys[name], None) is not None)

    async def contains(self, name: str) -> bool:
        return await self._process.ask(lambda: self._keys[name] in self._shelf)

    async def aclose(self) -> None: ...


class Attempts:
    """The attempts of all processes as one reaches them: kept when Redis forgets its values, away when it is."""

    def __init__(self, cluster: Cluster, process: Process) -> None:
        self._cluster = cluster
        self._process = process

    async def settle(self, key: str, *, at_least: int = 0, died: bool = True) -> int:
        return await self._ask(lambda kept: kept.settle(key, at_least=at_least, died=died))

    async def begin(self, key: str, attempt: str) -> None:
        await self._ask(lambda kept: kept.begin(key, attempt))

    async def close(self, key: str, attempt: str, end: End) -> None:
        await self._ask(lambda kept: kept.close(key, attempt, end))

    async def _ask(self, step: Callable[[MemoryAttempts], Coroutine[Any, Any, T]]) -> T:
        def serve() -> T:
            try:
                step(self._cluster.attempts).send(None)
            except StopIteration as stop:
                return cast(T, stop.value)
            raise AssertionError("it waits for nothing")

        try:
            return await self._process.ask(lambda: self._cluster.redis.serve(serve))
        except TierError as error:
            raise Unavailable("Attempts cannot be reached just now.") from error


class Engine:
    """A GPU whose steps take virtual time; no two of its videos have the same bytes."""

    def __init__(self, cluster: Cluster, process: Process) -> None:
        self._cluster = cluster
        self._process = process
        self._jobs: set[str] = set()
        self.isolation = Isolation()
        self.asked: dict[str, tuple[Process, float, int | None]] = {}

    async def render(
        self, job_id: str, spec: Any, prompt: Any, negative: Any, on_step: Any, *, on_begin: Any, **named: Any
    ) -> Rendering:
        if job_id in self._jobs:
            raise Conflict("It is in the engine already.")
        await self.isolation.admitted(job_id)
        await on_begin()
        cluster, shape = self._cluster, self._cluster.shape
        render = Render(job_id, self._process, *self.asked[job_id][:2], cluster.world.now, self.asked[job_id][2])
        cluster.renders.append(render)
        nonce = f"{job_id} by render {len(cluster.renders)}".encode()
        self._jobs.add(job_id)
        try:
            for step in range(1, shape.steps + 1):
                await asyncio.sleep(shape.step_seconds)
                if job_id in cluster.freezing:
                    self._process.pause(LEASE_SECONDS + 4.0)
                    await asyncio.sleep(0)
                if job_id in cluster.deadly:
                    await cluster.die_of(self._process)
                if cluster.poisoned.pop(job_id, False):
                    raise RenderFailed("The model diverged.")
                on_step(step, shape.steps)
        finally:
            self._jobs.discard(job_id)
            render.died = not self._process.alive
        render.ended = True
        return Rendering(nonce, None, 0.0, shape.steps * shape.step_seconds, 0.0, shape.steps)  # type: ignore[arg-type]

    def promote(self, job_id: str, urgency: Urgency) -> bool:
        return job_id in self._jobs


@dataclass(eq=False)
class Router:
    """One router's process and source."""

    process: Process
    source: VideoLoader
    cache: TieredCache


@dataclass(eq=False)
class Diffusion:
    """One renderer's process and worker; `streams` are what it answers just now."""

    process: Process
    worker: RenderWorker
    engine: Engine
    streams: dict[object, Stream] = field(default_factory=dict)


@dataclass(eq=False)
class Stream:
    """Events from a Diffusion replica to one router, in order; it breaks when either dies."""

    router: Process
    queue: asyncio.Queue[RenderEvent | BaseException]
    task: asyncio.Task[None] | None = None
    arrives_at: float = 0.0

    def send(self, event: RenderEvent | BaseException) -> None:
        world = self.router.world
        self.arrives_at = max(self.arrives_at, world.now + world.latency())
        world.after(self.arrives_at - world.now, lambda: self.router.post(self.queue.put_nowait, event))


class Renderer:
    """What HandleRenderer is: one router's way to all Diffusion replicas, behind the real queue."""

    def __init__(self, cluster: Cluster, process: Process) -> None:
        self._cluster = cluster
        self._process = process
        self._queue = RenderQueue()

    async def render(self, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        asked_at = self._cluster.world.now
        async with self._queue.turn(request.keys.video, asked_at) as turn:
            diffusion = await self._free_replica()
            stream = Stream(self._process, asyncio.Queue())
            diffusion.streams[stream] = stream
            world = self._cluster.world
            world.after(
                world.latency(), lambda: diffusion.process.post(self._begin, diffusion, stream, request, asked_at)
            )
            try:
                while not isinstance(event := await stream.queue.get(), BaseException):
                    self._queue.taken(turn)
                    yield event
                    if isinstance(event, Finished):
                        return
                raise event
            finally:
                diffusion.streams.pop(stream, None)
                if self._process.alive:
                    hang_up(world, diffusion, stream)

    async def _free_replica(self) -> Diffusion:
        while True:
            free = [each for each in self._cluster.diffusions if len(each.streams) < PLACES]
            if free:
                return self._cluster.world.random.choice(free)
            await asyncio.sleep(0.1)

    @staticmethod
    def _begin(diffusion: Diffusion, stream: Stream, request: RenderRequest, asked_at: float) -> None:
        async def answer() -> None:
            try:
                if diffusion.worker._flights.find(request.keys.video) is None:
                    diffusion.engine.asked[request.keys.video] = (stream.router, asked_at, request.token)
                async for event in diffusion.worker.render(request, EMBEDS):
                    stream.send(event)
            except EncoreError as error:
                stream.send(error)
            except asyncio.CancelledError:
                if diffusion.process.alive:
                    stream.send(RenderFailed("The render failed: CancelledError."))
                raise

        stream.task = diffusion.process.spawn(answer())

    async def cancel(self, key: str) -> None:
        for diffusion in list(self._cluster.diffusions):
            self._cluster.world.after(0.002, lambda each=diffusion: each.process.post(each.worker.cancel, key))

    async def drop_latents(self, key: str) -> None: ...

    def promote(self, key: str, urgency: Urgency) -> None:
        for diffusion in self._cluster.diffusions:
            self._cluster.world.after(
                0.002, lambda each=diffusion: each.process.post(each.worker.promote, key, urgency)
            )

    async def stats(self) -> dict[str, Any]:
        return {}


def hang_up(world: World, diffusion: Diffusion, stream: Stream) -> None:
    """End the answering of a stream whose reader has gone."""

    def cancel() -> None:
        if stream.task is not None:
            stream.task.cancel()

    world.after(world.latency(), lambda: diffusion.process.post(cancel))


class Cluster:
    """All of it, and what can happen to it."""

    def __init__(self, shape: Shape, seed: int, skews: tuple[float, ...] = ()) -> None:
        self.world = World(seed)
        self.shape = shape
        self.keys = [f"key{number}" for number in range(shape.keys)]
        self._names = {storage_name(SECRET, "video", key): key for key in self.keys}
        self.redis = Redis(self.world, Records(self.world, linger_seconds=LINGER))
        self.objects = Shelf(self.world)
        self.renders: list[Render] = []
        self.waits: list[Wait] = []
        self.poisoned: dict[str, bool] = {}
        self.deadly: set[str] = set()
        self.freezing: set[str] = set()
        self.attempts = MemoryAttempts(lambda: self.world.now)
        self._skews = skews
        self._started = 0
        self.routers = [self._new_router() for _ in range(shape.routers)]
        self.diffusions = [self._new_diffusion() for _ in range(shape.diffusions)]

    def _process(self, kind: str) -> Process:
        self._started += 1
        skew = self._skews[self._started % len(self._skews)] if self._skews else 0.0
        return Process(self.world, f"{kind}{self._started}", skew)

    def _cache(self, process: Process, *, l1: bool) -> TieredCache:
        return TieredCache(
            "video",
            secret=SECRET,
            l1=MemoryTier(1 << 20, clock=process.loop.time) if l1 else None,
            l2=RedisValues(self.redis, process, self._names),
            l3=Objects(self.objects, process, self._names) if self.shape.has_l3 else None,
            clock=process.loop.time,
        )

    def _new_router(self) -> Router:
        process = self._process("router")
        cache = self._cache(process, l1=True)
        made = VideoLoader(
            cache,
            Renderer(self, process),
            "weights",
            max_queued=100,
            linger_seconds=LINGER,
            flight_records=Flights(self.redis, process),
            attempts=Attempts(self, process),
            monotonic=lambda: self.world.now,
        )
        return Router(process, made, cache)

    def _new_diffusion(self) -> Diffusion:
        process = self._process("diffusion")
        engine = Engine(self, process)
        records = Flights(self.redis, process)
        finisher = VideoWriter(self._cache(process, l1=False), Telemetry(), records)

        async def finish(request: RenderRequest, frames: Frames, seconds: float, outcome: Outcome) -> Finished:
            return await finisher.finish(request, frames, seconds, outcome)

        worker = RenderWorker(engine, finish, "weights", None, records, Attempts(self, process))  # type: ignore[arg-type]
        return Diffusion(process, worker, engine)

    # What clients do.

    def ask(self, router: int, key: str, patience: float | None = None, *, at_once: bool = False) -> Wait:
        """A client comes, and leaves when its patience ends."""
        chosen = self.routers[router % len(self.routers)]
        wait = Wait(key, chosen.process, self.world.now)
        self.waits.append(wait)

        async def come() -> None:
            try:
                wait.flight_result = await _served(chosen.source, key, patience, at_once)
            except TimeoutError:
                wait.left = True
            except EncoreError as error:
                wait.error = error if chosen.process.alive else None
            finally:
                if chosen.process.alive:
                    wait.ended_at = self.world.now

        chosen.process.post(lambda: chosen.process.spawn(come()))
        return wait

    def invalidate(self, router: int, key: str) -> None:
        """Delete a video from all tiers and from every router's memory."""
        chosen = self.routers[router % len(self.routers)]

        async def delete() -> None:
            await chosen.cache.delete(key)
            for other in self.routers:
                self.world.after(self.world.latency(), lambda other=other: other.process.post(other.cache.forget, key))

        chosen.process.post(lambda: chosen.process.spawn(delete()))

    # What happens to clusters.

    def kill_router(self, index: int) -> None:
        """SIGKILL; another one takes its place."""
        place = index % len(self.routers)
        process = self.routers[place].process
        process.kill()
        for diffusion in self.diffusions:
            for stream in [each for each in diffusion.streams if each.router is process]:  # type: ignore[attr-defined]
                del diffusion.streams[stream]
                hang_up(self.world, diffusion, stream)  # type: ignore[arg-type]
        self.routers[place] = self._new_router()

    def kill_diffusion(self, index: int) -> None:
        """SIGKILL; those who read from it are told, and another one takes its place a little later."""
        if not self.diffusions:
            return
        diffusion = self.diffusions.pop(index % len(self.diffusions))
        diffusion.process.kill()
        for stream in diffusion.streams.values():
            stream.send(ReplicaDied("The renderer died while it worked on this video.", retry_after=1))
        self.world.after(2.0, lambda: self.diffusions.append(self._new_diffusion()))

    async def die_of(self, process: Process) -> None:
        """What a deadly render does to its process, awaited there."""
        for place, diffusion in enumerate(self.diffusions):
            if diffusion.process is process:
                self.world.after(0.0, lambda place=place: self.kill_diffusion(place))
                await asyncio.get_running_loop().create_future()

    def redis_away(self, seconds: float, *, forget: bool) -> None:
        """Out of reach for a while; without persistence it comes back empty. Subscriptions take a second to return."""
        self.redis.away_until = self.world.now + seconds
        self.redis.deaf_until = max(self.redis.deaf_until, self.redis.away_until + 1.0)
        if forget:
            self.redis.model.flush()


async def _served(source: VideoLoader, key: str, patience: float | None, at_once: bool) -> FlightResult:
    keys = Keys("p", "n", "l", key)
    flight_result = source.now(keys) or await source.overflow(keys)
    if flight_result is not None:
        return flight_result
    flight, _ = source.join_or_lead(SPEC, keys, Urgency())
    flight.hold()
    gave_up = True
    try:
        async with asyncio.timeout(patience):
            flight_result = await flight.result()
        gave_up = False
        return flight_result
    finally:
        flight.release(at_once=at_once and gave_up)


class _Time:
    """The module `time` as a simulated process sees it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def time(self) -> float:
        loop = asyncio.get_running_loop()
        skew = next(process.skew for process in self._cluster.world.processes if process.loop is loop)
        return 1e9 + self._cluster.world.now + skew

    def monotonic(self) -> float:
        return self._cluster.world.now

    perf_counter = monotonic


@contextmanager
def simulated(cluster: Cluster) -> Iterator[Cluster]:
    """Let product code see the cluster's time, and an encoder that needs no frames."""
    modules = (loader, video_encoding, cluster_flight)
    times = [module.time for module in modules]
    encode = video_encoding.encode_mp4
    for module in modules:
        module.time = _Time(cluster)  # type: ignore[assignment]
    video_encoding.encode_mp4 = lambda frames, fps, quality: bytes(frames)  # type: ignore[assignment]
    try:
        yield cluster
    finally:
        cluster.world.close()
        video_encoding.encode_mp4 = encode
        for module, time in zip(modules, times, strict=True):
            module.time = time
