"""What clients get while tiers are broken: the product's own wiring over a real Valkey and SeaweedFS behind proxies.

Synchronous requests get their video, marked when nobody could keep it; jobs are refused when nothing can keep them or
their video. Only time is the test's own: breakers wait for a clock turned by hand.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest

from benchmarks.fault_proxy import Fault, FaultProxy
from benchmarks.outage_line import FIELDS, Line, open_line, video_of
from serve_app.cache.circuit import Circuit
from serve_app.cache.redis.redis import RedisTier
from serve_app.core import Outcome
from serve_app.errors import Busy, EncoreError, Unavailable
from serve_app.schema import VideoRequest, parse_request
from serve_app.service.jobs.job import Job
from serve_app.service.service import Answer, VideoService
from serve_app.settings import Settings
from serve_app.telemetry import BreakerTurned, Event, Telemetry
from tests.conftest import S3Server, ValkeyServer
from tests.serve_app.cache.full_valkey import FULL, out_of_memory
from tests.serve_app.service.rig import Clock, ended

PATIENCE = 60.0
"""Seconds after which a request hangs, on a machine however busy."""
BROKEN = [fault for fault in Fault if fault is not Fault.NONE]


def ask(prompt: str) -> VideoRequest:
    return parse_request({"prompt": prompt} | FIELDS)


class Front:
    """A router with all that is behind it, over an L2 and an L3 that can be broken."""

    def __init__(self, settings: Settings, l2: FaultProxy, l3: FaultProxy, clock: Clock) -> None:
        self.proxies = {"l2": l2, "l3": l3}
        self.events: list[Event] = []
        self.clock = clock
        self.service: VideoService
        self.line: Line
        self.service, self.line = open_line(settings, Telemetry(self.events.append))
        self._asked = 0

    async def generate(self, prompt: str) -> Answer:
        """Ask, and compare with what it must be."""
        async with asyncio.timeout(PATIENCE):
            answer = await self.service.generate(ask(prompt))
        assert answer.entry.data == video_of(answer.spec, answer.keys)
        return answer

    async def something_new(self) -> Answer:
        self._asked += 1
        return await self.generate(f"video number {self._asked}")

    async def attempts(self, tiers: list[str]) -> int:
        await self.line.settled()
        await self.service._cache._settled(self.service._cache._background)
        return sum(self.proxies[tier].attempts for tier in tiers)

    async def back(self, done: Callable[[Answer], bool]) -> None:
        """Let trials through until an answer is as it should be; a busy machine may fail the first."""
        for _ in range(20):
            self.clock.now += 5
            if done(await self.something_new()):
                return
            await asyncio.sleep(0.1)
        raise AssertionError("it does not come back")

    async def aclose(self) -> None:
        await self.service.aclose()
        await self.line.aclose()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of every breaker that the wiring makes."""
    made = Clock()
    monkeypatch.setattr("serve_app.wiring.tiers.Circuit", partial(Circuit, clock=made))
    return made


@pytest.fixture
async def front(
    valkey_server: ValkeyServer, s3_server: S3Server, s3_prefix: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Front]:
    valkey_server.flush()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_access_key)
    monkeypatch.setenv("AWS_DEFAULT_REGION", s3_server.region)
    s3_port = urlsplit(s3_server.endpoint_url).port
    assert s3_port is not None
    with FaultProxy(str(valkey_server.socket)) as l2, FaultProxy(s3_port) as l3:
        settings = Settings(
            redis_url=f"redis://127.0.0.1:{l2.port}", redis_timeout_seconds=0.5,
            l3_url=f"s3://{s3_server.bucket}/{s3_prefix}", s3_endpoint_url=f"http://127.0.0.1:{l3.port}",
            l3_timeout_seconds=4,
        )  # fmt: skip
        made = Front(settings, l2, l3, clock)
        yield made
        l2.heal()
        l3.heal()
        await made.aclose()


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("tiers", [["l2"], ["l3"], ["l2", "l3"]], ids="+".join)
async def test_tiers_that_do_not_answer(front: Front, tiers: list[str], fault: Fault) -> None:
    """No request fails and every video is the right one; soon nothing is attempted; all of it heals by itself."""
    known = await front.something_new()
    assert (known.outcome, known.stored) == (Outcome.RENDERED, True)
    for tier in tiers:
        front.proxies[tier].break_as(fault)
    kept = len(tiers) == 1  # the other one has it
    for _ in range(4):
        answer = await front.something_new()
        assert (answer.outcome, answer.stored) == (Outcome.RENDERED, kept)
    await jobs_while_broken(front, keeps=tiers == ["l3"])
    before = await front.attempts(tiers)
    for _ in range(3):
        assert (await front.something_new()).stored is kept
        await jobs_while_broken(front, keeps=tiers == ["l3"])
    assert (await front.generate("video number 1")).outcome is Outcome.L1
    assert await front.attempts(tiers) == before
    assert {(turn.tier, turn.asked) for turn in turns(front)} == {(tier, "reach") for tier in tiers}

    for tier in tiers:
        front.proxies[tier].heal()
    assert (await front.service.stats())["cache"][tiers[0]]["breaker"] != "closed"

    def healed(answer: Answer) -> bool:
        return answer.stored and closed(front)

    await front.back(healed)
    last = await front.something_new()
    assert (await front.service.explain(ask(last.spec.prompt)))["tiers"] == {"l1": True, "l2": True, "l3": True}
    async with asyncio.timeout(PATIENCE):
        await ended(front.service, await accepted(front, ask("a job after it all")))


async def accepted(front: Front, request: VideoRequest, *, later: float = 0.0) -> Job:
    """Submit as a client does that is told to try again `later`: a busy machine may be late for a timeout."""
    for _ in range(20):
        try:
            return await front.service.jobs.submit(request)
        except Unavailable:
            front.clock.now += later
            await asyncio.sleep(0.1)
    raise AssertionError("jobs are not accepted any more")


async def jobs_while_broken(front: Front, *, keeps: bool) -> None:
    """A job for something new is accepted where it can be kept, else refused with Retry-After; one in memory always."""
    front._asked += 1
    request = ask(f"video number {front._asked}")
    async with asyncio.timeout(PATIENCE):
        if keeps:
            assert (await ended(front.service, await accepted(front, request))).status == "completed"
        else:
            with pytest.raises(Unavailable) as refused:
                await front.service.jobs.submit(request)
            assert refused.value.retry_after is not None
        hit = await front.service.jobs.submit(ask("video number 1"))
        assert hit.status == "completed"
        entry, _, outcome = await front.service.jobs.content(hit.id)
    assert (outcome, entry.data) == (Outcome.L1, (await front.generate("video number 1")).entry.data)


def turns(front: Front) -> list[BreakerTurned]:
    return [event for event in front.events if isinstance(event, BreakerTurned)]


def closed(front: Front) -> bool:
    """Whether as many breakers have closed as have opened."""
    states = [turn.state for turn in turns(front)]
    return states.count("open") == states.count("closed")


@pytest.mark.parametrize("fill", FULL, ids=lambda fill: fill.__name__)
async def test_a_redis_that_takes_no_values(
    start_valkey: Callable[..., ValkeyServer], clock: Clock, fill: Callable[..., Any]
) -> None:
    """With no other tier: old videos come from L2, new ones are rendered and marked, jobs are refused; it heals."""
    server = start_valkey(persistent=True)
    settings = Settings(redis_url=server.url, redis_timeout_seconds=5)
    with FaultProxy(str(server.socket)) as unused:
        front = Front(settings, unused, unused, clock)
        other = Front(settings, unused, unused, clock)
        admin = RedisTier(server.url)
        assert (await front.generate("an old video")).stored
        await front.attempts([])
        room = await fill(server, admin)
        assert (await other.generate("an old video")).outcome is Outcome.L2
        for number in range(4):
            answer = await front.generate(f"a new video {number}")
            assert (answer.outcome, answer.stored) == (Outcome.RENDERED, False)
            with pytest.raises((Unavailable, Busy)) as refused:
                await front.service.jobs.submit(ask(f"a job {number}"))
            assert refused.value.retry_after is not None
        other.service.forget((front.service.planner.plan(ask("an old video")).keys.video,), ())
        assert (await other.generate("an old video")).outcome is Outcome.L2
        # A server that is only full says so before it must refuse: that is no failure of the tier.
        expected = set() if fill is out_of_memory else {("l2", "store")}
        assert {(turn.tier, turn.asked) for turn in turns(front)} == expected
        await room()
        await front.back(lambda answer: answer.stored and closed(front))
        await admin.close()
        await front.aclose()
        await other.aclose()


async def test_a_trial_asks_before_a_job_relies_on_it(front: Front) -> None:
    """After its while a broken L3 is asked once before a job is accepted; nobody is promised what cannot be kept."""
    settings = Settings(
        l3_url=f"s3://encore-tests/{front.proxies['l3'].port}", l3_timeout_seconds=4,
        s3_endpoint_url=f"http://127.0.0.1:{front.proxies['l3'].port}",
    )  # fmt: skip
    alone = Front(settings, front.proxies["l2"], front.proxies["l3"], front.clock)
    assert (await alone.something_new()).stored
    front.proxies["l3"].break_as(Fault.REFUSING)
    for _ in range(4):
        assert not (await alone.something_new()).stored
    alone.service._cache.hear(stored=True)  # forget what the renderer told: here the router must find out
    for _ in range(3):
        before = await alone.attempts(["l3"])
        front.clock.now += 5
        with pytest.raises(EncoreError) as refused:
            await alone.service.jobs.submit(ask("a job"))
        assert isinstance(refused.value, Unavailable)
        assert front.proxies["l3"].attempts - before in (1, 2)  # aiohttp knocks twice when it is hung up on
    front.proxies["l3"].heal()
    front.clock.now += 5
    async with asyncio.timeout(PATIENCE):
        assert (await ended(alone.service, await accepted(alone, ask("a job"), later=5))).status == "completed"
    await alone.aclose()


async def test_without_any_storage_a_job_is_told_what_to_set() -> None:
    """A server that was given no tier at all says which settings it lacks."""
    service, line = open_line(Settings(), Telemetry())
    with pytest.raises(Unavailable, match="ENCORE_REDIS_URL or ENCORE_L3_URL") as caught:
        await service.jobs.submit(ask("a red circle"))
    assert caught.value.retry_after == 60
    await service.aclose()
    await line.aclose()
