"""Several routers and replicas in one process over a real Valkey: one flight per video, whoever dies or leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from serve_app.cache.cache import TieredCache
from serve_app.cache.objects.folder import FolderStore
from serve_app.cache.redis.bloom import BloomFilter
from serve_app.cache.redis.bloom_builder import BloomBuilder
from serve_app.cache.redis.lease import Lease
from serve_app.cache.storage_name import redis_name, storage_name
from serve_app.core import Finished, Outcome, Priority, Progress, RenderEvent, RenderRequest, Urgency
from serve_app.engine.engine import Rendering
from serve_app.engine.isolation import Isolation
from serve_app.errors import RenderCancelled, RenderFailed, TierError, Unavailable
from serve_app.flight import cluster_flight
from serve_app.flight.cluster_flight import ClusterFlight
from serve_app.flight.heartbeat import Heartbeat
from serve_app.flight.record import FlightState
from serve_app.flight.redis_record import RedisFlightRecords
from serve_app.flight.result import FlightResult
from serve_app.model.families import load_family
from serve_app.render.text_encoding import PromptEmbeds
from serve_app.render.video_encoding import VideoWriter
from serve_app.render.worker import RenderWorker
from serve_app.service.loader import VideoLoader
from serve_app.service.plan import Planner
from serve_app.telemetry import TierRead
from tests.conftest import ValkeyServer
from tests.serve_app.service.rig import SECRET, SMALLEST, Rig, ask, until

FAMILY = load_family("native/demo")
EMBEDS = PromptEmbeds(np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32), "hit")
LEASE = 1.0
STEPS = 8


class Engine:
    """Stands where the step engine does: `steps` of `seconds` each, black frames; holds, fails and hangs as told."""

    def __init__(self) -> None:
        self.rendered: list[str] = []
        self.isolation = Isolation()
        self.promoted: list[Urgency] = []
        self.seconds = 0.01
        self.failure: Exception | None = None
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def render(self, key: str, spec: Any, _prompt: Any, _negative: Any, on_step: Any, **_: Any) -> Rendering:
        self.rendered.append(key)
        for step in range(1, STEPS + 1):
            await self.go_on.wait()
            await asyncio.sleep(self.seconds)
            if self.failure is not None:
                raise self.failure
            on_step(step, STEPS)
        frames = np.zeros((spec.num_frames, spec.height, spec.width, 3), np.uint8)
        return Rendering(frames, torch.zeros(1), 0.0, 0.1, 0.0, STEPS)

    def promote(self, _key: str, urgency: Urgency) -> bool:
        self.promoted.append(urgency)
        return True


class Replica:
    """A Diffusion replica with the encoder behind it, which can be killed."""

    def __init__(self, rig: Rig, flights: RedisFlightRecords) -> None:
        self.engine = Engine()
        self.alive = True
        finisher = VideoWriter(rig.cache(l1=False), rig.telemetry, flights)
        self.worker = RenderWorker(
            self.engine,  # type: ignore[arg-type]  # the three methods that a worker calls
            finisher.finish,
            FAMILY.card.model_fingerprint,
            flight_records=flights,
        )

    def kill(self) -> None:
        """End everything that runs here, as SIGKILL would: nothing is told to anybody."""
        self.alive = False
        for flight in self.worker._flights._flights.values():
            flight.task.cancel()


def heartbeats(worker: RenderWorker) -> list[Heartbeat]:
    """Return the heartbeats of the records that `worker` keeps alive."""
    return [flight.heartbeat for flight in worker._flights if flight.heartbeat is not None]


class Line:
    """What a router has for a renderer: the replicas, one after the other."""

    def __init__(self, replicas: list[Replica]) -> None:
        self.replicas = replicas
        self.promoted: list[Urgency] = []

    async def render(self, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        replica = next((each for each in self.replicas if each.alive), None)
        if replica is None:
            raise Unavailable("There is no replica.", retry_after=1)
        try:
            async for event in replica.worker.render(request, EMBEDS):
                yield event
        except RenderCancelled:
            if replica.alive:
                raise
            raise Unavailable("The replica died.", retry_after=1) from None

    async def cancel(self, key: str) -> None:
        for replica in self.replicas:
            replica.worker.cancel(key)

    async def drop_latents(self, key: str) -> None:
        """There are none."""

    def promote(self, _key: str, urgency: Urgency) -> None:
        self.promoted.append(urgency)

    async def stats(self) -> dict[str, Any]:
        return {}


class Cluster:
    """Routers and replicas over one Valkey and one folder."""

    def __init__(self, rig: Rig, replicas: int = 1) -> None:
        self.rig = rig
        self.records: list[RedisFlightRecords] = []
        self.replicas = [Replica(rig, self.flights()) for _ in range(replicas)]
        self.plan = Planner(FAMILY, "encoder", max_prompt_chars=100).plan(ask(size=SMALLEST, num_frames=8))

    @property
    def renders(self) -> int:
        return sum(len(replica.engine.rendered) for replica in self.replicas)

    def flights(self) -> RedisFlightRecords:
        redis = self.rig.redis()
        assert redis is not None
        self.records.append(
            RedisFlightRecords(redis, secret=SECRET, linger_seconds=0.5, lease_seconds=LEASE, waiter_seconds=2)
        )
        return self.records[-1]

    def router(self, line: Line | None = None) -> VideoLoader:
        return VideoLoader(
            self.rig.cache(),
            line or Line(self.replicas),
            FAMILY.card.model_fingerprint,
            max_queued=10,
            linger_seconds=0.5,
            flight_records=self.flights(),
        )

    def join_or_lead(
        self, router: VideoLoader, urgency: Urgency | None = None
    ) -> tuple[ClusterFlight, asyncio.Task[FlightResult]]:
        flight, _ = router.join_or_lead(self.plan.spec, self.plan.keys, urgency or Urgency())
        return flight, asyncio.ensure_future(flight.wait())

    async def joined(self, line: Line | None = None) -> asyncio.Task[FlightResult]:
        """Ask on one more router, and wait until the flight's record has it."""
        waiters = redis_name(storage_name(SECRET, "video", self.plan.keys.video), "waiters")
        client = self.records[0]._redis.client
        before = await client.zcard(waiters)
        _, waiting = self.join_or_lead(self.router(line))

        async def counted() -> bool:
            return bool(await client.zcard(waiters) > before)

        await until(counted)
        return waiting

    async def aclose(self) -> None:
        for replica in self.replicas:
            replica.engine.go_on.set()
            replica.engine.failure = RenderCancelled("the test is over")
        for records in self.records:
            await records.aclose()


def hold(cluster: Cluster) -> None:
    for replica in cluster.replicas:
        replica.engine.go_on.clear()


@pytest.fixture
async def make(tmp_path: Path, valkey_server: ValkeyServer) -> AsyncIterator[Callable[..., Cluster]]:
    made: list[Cluster] = []

    def cluster(replicas: int = 1, url: str = valkey_server.url) -> Cluster:
        made.append(Cluster(Rig(tmp_path, url), replicas))
        return made[-1]

    valkey_server.flush()
    yield cluster
    for each in made:
        await each.aclose()
        await each.rig.aclose()


async def state(cluster: Cluster) -> FlightState | None:
    news = await cluster.records[0].look(cluster.plan.keys.video)
    return None if news is None else news.state


async def test_two_routers_one_render(make: Callable[..., Cluster]) -> None:
    """Of two routers asked at once one renders; the other joins, sees every kind of news, and gets the same bytes."""
    cluster = make()
    cluster.replicas[0].engine.seconds = 0.05
    first, one = cluster.join_or_lead(cluster.router())
    await until(lambda: cluster.renders == 1)
    second, two = cluster.join_or_lead(cluster.router())
    results = await asyncio.gather(one, two)
    assert [flight_result.outcome for flight_result in results] == [Outcome.RENDERED, Outcome.JOINED]
    assert results[0].entry.data == results[1].entry.data
    assert cluster.renders == 1
    steps = [event.step for event in second.events if isinstance(event, Progress)]
    assert steps == sorted(set(steps))
    assert len(steps) >= 3
    assert await state(cluster) is FlightState.LANDED
    assert isinstance(first.events[-1], Finished)


async def test_found_in_l2_costs_one_script(make: Callable[..., Cluster]) -> None:
    """A video in L2 comes as `l2` through the boarding script; one only in L3 as `l3`, and is in L2 after it."""
    cluster = make()
    await cluster.join_or_lead(cluster.router())[1]
    assert (await cluster.join_or_lead(cluster.router())[1]).outcome is Outcome.L2
    redis = cluster.rig.redis()
    assert redis is not None
    await redis.client.flushall()
    assert (await cluster.join_or_lead(cluster.router())[1]).outcome is Outcome.L3
    assert (await cluster.join_or_lead(cluster.router())[1]).outcome is Outcome.L2
    assert cluster.renders == 1


async def test_what_the_filter_denies_is_not_looked_for_in_l3(make: Callable[..., Cluster]) -> None:
    """Who is given the lead is told that L3 has it not, and does not look; what was stored is looked for and found."""
    cluster = make()
    redis = cluster.rig.redis()
    assert redis is not None
    bloom = BloomFilter(redis)
    store = FolderStore(cluster.rig.folder or Path())
    await BloomBuilder(bloom, store.names, Lease(redis, "bloom")).build()

    def router() -> VideoLoader:
        flights = RedisFlightRecords(redis, secret=SECRET, linger_seconds=0.5, bloom=bloom)
        cluster.records.append(flights)
        return VideoLoader(
            TieredCache("video", secret=SECRET, l2=redis, l3=store, bloom=bloom, telemetry=cluster.rig.telemetry),
            Line(cluster.replicas),
            FAMILY.card.model_fingerprint,
            max_queued=10,
            linger_seconds=0.5,
            flight_records=flights,
        )

    def l3() -> list[str]:
        return [e.result for e in cluster.rig.events if isinstance(e, TierRead) and e.tier == "l3"]

    assert (await cluster.join_or_lead(router())[1]).outcome is Outcome.RENDERED
    assert l3() == ["filtered"]
    name = storage_name(SECRET, "video", cluster.plan.keys.video)
    await bloom.add(name)  # the rig's encoder knows no filter
    await redis.client.unlink(redis_name(name), redis_name(name, "flight"), redis_name(name, "waiters"))
    assert (await cluster.join_or_lead(router())[1]).outcome is Outcome.L3
    assert l3() == ["filtered", "hit"]


async def test_a_routers_death_costs_nothing(make: Callable[..., Cluster]) -> None:
    """The leading router vanishes without a word: the render goes on, and who waits elsewhere gets it."""
    cluster = make()
    hold(cluster)
    leading, task = cluster.join_or_lead(cluster.router())
    await until(lambda: cluster.renders == 1)
    waiting = await cluster.joined()
    leading._last_waiter_left = lambda at_once: None  # type: ignore[method-assign]  # a dead process tells nothing
    leading.task.cancel()
    task.cancel()
    cluster.replicas[0].engine.go_on.set()
    flight_result = await waiting
    assert (flight_result.outcome, cluster.renders) == (Outcome.JOINED, 1)


async def test_a_dead_replica_is_replaced_at_once_by_the_leader(make: Callable[..., Cluster]) -> None:
    """The replica dies under the leader: it asks another one under a new token, two renders in all."""
    cluster = make(replicas=2)
    hold(cluster)
    _, one = cluster.join_or_lead(cluster.router())
    await until(lambda: cluster.renders == 1)
    two = await cluster.joined()
    cluster.replicas[0].kill()
    cluster.replicas[1].engine.go_on.set()
    results = await asyncio.gather(one, two)
    assert [flight_result.outcome for flight_result in results] == [Outcome.RENDERED, Outcome.JOINED]
    assert cluster.renders == 2


async def test_a_silent_replica_is_taken_over_by_a_waiter(make: Callable[..., Cluster]) -> None:
    """Router and replica vanish together: a waiter elsewhere takes over within the lease and a second."""
    cluster = make(replicas=2)
    hold(cluster)
    leading, one = cluster.join_or_lead(cluster.router())
    await until(lambda: cluster.renders == 1)
    two = await cluster.joined(Line(cluster.replicas[1:]))
    leading._last_waiter_left = lambda at_once: None  # type: ignore[method-assign]
    leading.task.cancel()
    one.cancel()
    cluster.replicas[0].kill()
    cluster.replicas[1].engine.go_on.set()
    async with asyncio.timeout(LEASE + 1 + 0.5):
        flight_result = await two
    assert (flight_result.outcome, cluster.renders) == (Outcome.RENDERED, 2)


async def test_a_paused_replica_is_fenced_off(make: Callable[..., Cluster]) -> None:
    """A replica that stalls longer than its lease and comes back finds that it is not wanted, and writes nothing."""
    cluster = make(replicas=2)
    hold(cluster)
    stalled = cluster.replicas[0].worker
    _, one = cluster.join_or_lead(cluster.router())
    await until(lambda: bool(heartbeats(stalled)))
    (heartbeat,) = heartbeats(stalled)
    deaf = heartbeat._records = _Deaf()  # type: ignore[assignment]  # its heartbeats do not leave the machine
    _, two = cluster.join_or_lead(cluster.router(Line(cluster.replicas[1:])))
    cluster.replicas[1].engine.go_on.set()
    flight_result = await two
    assert (flight_result.outcome, (await one).entry.digest) == (Outcome.RENDERED, flight_result.entry.digest)
    heartbeat._records = cluster.records[0]
    deaf.hears.set()
    await until(lambda: not heartbeats(stalled))


class _Deaf:
    def __init__(self) -> None:
        self.hears = asyncio.Event()

    async def beat(self, *_: object) -> None:
        await self.hears.wait()
        raise TierError("too late")


@pytest.mark.parametrize("at_once", [False, True])
async def test_the_last_one_leaving_ends_it(make: Callable[..., Cluster], at_once: bool) -> None:
    """Nobody waits any more: the render ends at its next step, after the linger or at once."""
    cluster = make()
    hold(cluster)
    flight, _ = cluster.router().join_or_lead(cluster.plan.spec, cluster.plan.keys, Urgency())
    flight.hold()
    await until(lambda: cluster.renders == 1)
    await until(lambda: bool(heartbeats(cluster.replicas[0].worker)))
    flight.release(at_once=at_once)
    if not at_once:
        await asyncio.sleep(0.1)
        assert await state(cluster) is FlightState.RENDERING
    with suppress(RenderCancelled):
        await flight.result()
    assert await state(cluster) is FlightState.CANCELLED


async def test_one_leaving_at_once_does_not_end_it_for_another_router(make: Callable[..., Cluster]) -> None:
    """A delete on the leading router leaves the render to who waits elsewhere."""
    cluster = make()
    hold(cluster)
    flight, _ = cluster.router().join_or_lead(cluster.plan.spec, cluster.plan.keys, Urgency())
    flight.hold()
    await until(lambda: cluster.renders == 1)
    waiting = await cluster.joined()
    flight.release(at_once=True)
    await asyncio.sleep(0.05)
    cluster.replicas[0].engine.go_on.set()
    assert (await waiting).outcome is Outcome.JOINED
    assert cluster.renders == 1


async def test_who_comes_back_within_the_linger_keeps_it(make: Callable[..., Cluster]) -> None:
    """All leave; before the linger is over another router's client comes, and the same render is his."""
    cluster = make()
    hold(cluster)
    router = cluster.router()
    flight, waiting = cluster.join_or_lead(router)
    await until(lambda: cluster.renders == 1)
    waiting.cancel()
    await asyncio.sleep(0.1)
    _, other = cluster.join_or_lead(cluster.router())
    await asyncio.sleep(0.6)
    cluster.replicas[0].engine.go_on.set()
    assert (await other).outcome is Outcome.JOINED
    assert (cluster.renders, (await flight.result()).outcome) == (1, Outcome.RENDERED)


async def test_a_failure_reaches_everybody_once(make: Callable[..., Cluster]) -> None:
    """A failed render fails for the waiters of both routers; who asks afterwards starts a new one."""
    cluster = make()
    cluster.replicas[0].engine.failure = RenderFailed("The model failed.")
    hold(cluster)
    _, one = cluster.join_or_lead(cluster.router())
    await until(lambda: cluster.renders == 1)
    two = await cluster.joined()
    cluster.replicas[0].engine.go_on.set()
    failures = await asyncio.gather(one, two, return_exceptions=True)
    assert [(type(each), str(each)) for each in failures] == [(RenderFailed, "The model failed.")] * 2
    cluster.replicas[0].engine.failure = None
    assert (await cluster.join_or_lead(cluster.router())[1]).outcome is Outcome.RENDERED
    assert cluster.renders == 2


async def test_while_no_replica_is_up_who_can_wait_waits(
    make: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that hold a connection are told to come back after a while; jobs get their video when one is up."""
    monkeypatch.setattr(cluster_flight, "PATIENCE_SECONDS", 0.5)
    cluster = make()
    cluster.replicas[0].alive = False
    flight, waiting = cluster.join_or_lead(cluster.router())
    with pytest.raises(Unavailable, match="try again") as refused:
        await flight.wait_interruptibly()
    assert refused.value.retry_after == 10
    assert not waiting.done()
    cluster.replicas[0].alive = True
    assert (await waiting).outcome is Outcome.RENDERED


async def test_a_more_urgent_waiter_hurries_it_from_another_router(make: Callable[..., Cluster]) -> None:
    """The replica hears of the most urgent of all who wait, wherever they do."""
    cluster = make()
    hold(cluster)
    _, one = cluster.join_or_lead(cluster.router(), Urgency(Priority.WARM_UP))
    await until(lambda: bool(heartbeats(cluster.replicas[0].worker)))
    _, two = cluster.join_or_lead(cluster.router(), Urgency(Priority.INTERACTIVE))
    await until(lambda: Urgency(Priority.INTERACTIVE) in cluster.replicas[0].engine.promoted)
    cluster.replicas[0].engine.go_on.set()
    await asyncio.gather(one, two)


async def test_a_value_too_large_for_l2_comes_from_l3(make: Callable[..., Cluster]) -> None:
    """When L2 does not take the video, who joined gets it out of L3 and it is rendered once."""
    cluster = make()
    for records in cluster.records:
        records._redis.max_value_bytes = 10
    hold(cluster)
    _, one = cluster.join_or_lead(cluster.router())
    await until(lambda: cluster.renders == 1)
    two = await cluster.joined()
    cluster.replicas[0].engine.go_on.set()
    results = await asyncio.gather(one, two)
    assert [flight_result.outcome for flight_result in results] == [Outcome.RENDERED, Outcome.JOINED]
    assert cluster.renders == 1


async def test_redis_goes_and_comes_back(
    make: Callable[..., Cluster], start_valkey: Callable[..., ValkeyServer]
) -> None:
    """Redis dies mid-render: both routers are answered, L3 has the video; meanwhile and after nothing is wrong."""
    valkey = start_valkey()
    cluster = make(url=valkey.url)
    hold(cluster)
    _, one = cluster.join_or_lead(cluster.router())
    await until(lambda: cluster.renders == 1)
    two = await cluster.joined()
    valkey.kill()
    cluster.replicas[0].engine.go_on.set()
    results = await asyncio.gather(one, two)
    assert len({flight_result.entry.digest for flight_result in results}) == 1
    assert cluster.renders == 1
    assert (await cluster.join_or_lead(cluster.router())[1]).outcome is Outcome.L3
    valkey.restart()
    for router in (cluster.router(), cluster.router()):
        assert (await cluster.join_or_lead(router)[1]).outcome in (Outcome.L2, Outcome.L3)
    assert cluster.renders == 1


async def test_a_render_begun_without_redis_is_kept_when_it_is_back(
    make: Callable[..., Cluster], start_valkey: Callable[..., ValkeyServer]
) -> None:
    """A render that began while Redis was away is joined under a token afterwards, and its record is kept alive."""
    valkey = start_valkey()
    cluster = make(url=valkey.url)
    valkey.kill()
    hold(cluster)
    _, one = cluster.join_or_lead(cluster.router())
    await until(lambda: cluster.renders == 1)
    valkey.restart()
    _, two = cluster.join_or_lead(cluster.router())
    await until(lambda: bool(heartbeats(cluster.replicas[0].worker)))
    token = heartbeats(cluster.replicas[0].worker)[0].token
    await asyncio.sleep(2 * LEASE)
    assert heartbeats(cluster.replicas[0].worker)[0].token == token
    cluster.replicas[0].engine.go_on.set()
    results = await asyncio.gather(one, two)
    assert len({flight_result.entry.digest for flight_result in results}) == 1
    assert cluster.renders == 1


async def test_redis_away_from_the_beginning(make: Callable[..., Cluster]) -> None:
    """Without Redis every process renders by itself, shares L3, and one process' requests share one render."""
    cluster = make(url="unix:///nowhere/valkey.sock")
    router = cluster.router()
    results = await asyncio.gather(*(cluster.join_or_lead(router)[1] for _ in range(3)))
    assert {flight_result.outcome for flight_result in results} == {Outcome.RENDERED}
    assert cluster.renders == 1
    assert (await cluster.join_or_lead(cluster.router())[1]).outcome is Outcome.L3
