"""Warm-ups over real tiers: what is skipped, rendered and counted, how long it is kept, and that no crash ends one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pytest

from serve_app.cache.redis.redis import WEEK, RedisTier
from serve_app.cache.storage_name import redis_name
from serve_app.core import Finished, Keys, Outcome, Priority, Progress, RenderEvent, RenderRequest, Started, Urgency
from serve_app.errors import Busy, NotFound, RenderFailed, Unavailable, Unprocessable
from serve_app.flight.redis_record import RedisFlightRecords
from serve_app.render.video_encoding import VideoWriter
from serve_app.schema import VideoRequest
from serve_app.service.plan import Plan
from serve_app.service.service import VideoService
from serve_app.service.warmup.record import Held, WarmStatus, WarmUp
from serve_app.service.warmup.store import MemoryWarmUps, Written
from serve_app.service.warmup.warmup import MAX_ITEMS, MAX_RUNNING, Warming
from tests.serve_app.cache.frames import opened
from tests.serve_app.flight.flight_cluster import SPEC, Cluster, Shape, simulated
from tests.serve_app.service.rig import SECRET, TINY, Rig, ScriptedRenderer, ask, until
from tests.virtual_time import Process

T = TypeVar("T")
DAY = 86_400


def request(*shops: str, **fields: Any) -> dict[str, Any]:
    """A warm-up of one template over `shops`."""
    return {"templates": [{"prompt": "a red heart grows for {shop}", "variables": {"shop": list(shops)}, **fields}]}


async def finished(service: VideoService, warm_up: WarmUp) -> WarmUp:
    async with asyncio.timeout(10):
        while True:
            newest = await service.warming.get(warm_up.id)
            if newest.status.is_final:
                return newest
            await asyncio.sleep(0.002)


def counts(warm_up: WarmUp) -> tuple[int, int, int, int]:
    return warm_up.total, warm_up.there, warm_up.rendered, warm_up.failed


async def test_what_is_warmed_is_a_hit(shared_rig: Rig) -> None:
    """Every combination is rendered once at warm_up priority; asked for, it is a hit on any router."""
    one, two = shared_rig.service(), shared_rig.service()
    begun = await one.warming.begin(request("Anna", "Bert", "Carl", **TINY))
    ended = await finished(one, begun)
    assert (ended.status, counts(ended), ended.duplicates) == (WarmStatus.COMPLETED, (3, 0, 3, 0), 0)
    assert {each.urgency for each in shared_rig.renderer.requests} == {Urgency(Priority.WARM_UP)}
    for service in (two, one):
        answer = await service.generate(ask("A red heart grows for bert", **TINY))
        assert answer.outcome is Outcome.L2  # not L1: a warm-up must not push out of memory what people ask for
    assert len(shared_rig.renderer.asked) == 3


async def test_equal_meanings_are_one_item(rig: Rig) -> None:
    """What normalisation reads as one prompt is counted, and made, once, across templates too."""
    service = rig.service()
    shops = request("Anna", " anna ", "ANNA", "Bert")
    shops["templates"].append({"prompt": "A red heart grows for Bert!"})
    ended = await finished(service, await service.warming.begin(shops))
    assert (counts(ended), ended.duplicates) == ((2, 0, 2, 0), 3)
    assert len(rig.renderer.asked) == 2


async def test_what_is_there_is_skipped(shared_rig: Rig) -> None:
    """A second warm-up renders nothing; one that means more renders the rest. L3 alone is there too."""
    service = shared_rig.service()
    first = await finished(service, await service.warming.begin(request("Anna", "Bert")))
    again = await finished(service, await service.warming.begin(request("Anna", "Bert", "Carl")))
    assert (counts(first), counts(again)) == ((2, 0, 2, 0), (3, 2, 1, 0))
    await shared_rig.pools[0].client.flushall()
    from_l3 = await finished(service, await service.warming.begin(request("Anna", "Bert", "Carl")))
    assert counts(from_l3) == (3, 3, 0, 0)
    assert len(shared_rig.renderer.asked) == 3


async def test_what_is_there_but_broken_is_made_good(shared_rig: Rig) -> None:
    """A flipped bit in L2 is not there: the video comes back from L3, or is rendered anew when L3 is broken too."""
    service = shared_rig.service()
    await finished(service, await service.warming.begin(request("Anna")))
    client = shared_rig.pools[0].client
    key = service.planner.plan(ask("a red heart grows for Anna")).keys.video
    l2 = service._cache._remotes[0]
    whole = await client.get(redis_name(l2._name(key)))
    broken = whole[:-1] + bytes([whole[-1] ^ 1])
    for with_l3, wanted in ((False, (1, 1, 0, 0)), (True, (1, 0, 1, 0))):
        await client.set(redis_name(l2._name(key)), broken)
        if with_l3:
            assert shared_rig.folder is not None
            (file,) = [path for path in shared_rig.folder.glob("objects/*/*/*") if path.stat().st_size > 500]
            file.write_bytes(broken)
        fresh = shared_rig.service()  # with nothing in its memory
        assert counts(await finished(fresh, await fresh.warming.begin(request("Anna")))) == wanted
        stored = await client.get(redis_name(l2._name(key)))
        assert opened(stored, key, secret=SECRET).data == opened(whole, key, secret=SECRET).data


async def test_failures_are_counted_and_told(rig: Rig) -> None:
    """A render that fails costs its item; the rest goes on, and the same warm-up again makes what is missing."""
    service = rig.service()
    rig.renderer.failure = RenderFailed("The model diverged.")
    ended = await finished(service, await service.warming.begin(request("Anna", "Bert")))
    assert (ended.status, counts(ended)) == (WarmStatus.COMPLETED, (2, 0, 0, 2))
    assert {(each.code, each.message) for each in ended.errors} == {("render_failed", "The model diverged.")}
    assert {each.prompt for each in ended.errors} == {"a red heart grows for Anna", "a red heart grows for Bert"}
    rig.renderer.failure = None
    assert counts(await finished(service, await service.warming.begin(request("Anna", "Bert")))) == (2, 0, 2, 0)


async def test_concurrency_is_bounded_over_all_warm_ups(rig: Rig) -> None:
    """Two warm-ups on one router together wait for no more renders than `warm_up_renders`."""
    service = rig.service(warm_up_renders=3)
    rig.renderer.hold()
    begun = [await service.warming.begin(request(*(f"{name}{n}" for n in range(10)))) for name in "ab"]
    await until(lambda: len(rig.renderer.asked) == 3)
    await asyncio.sleep(0.05)
    assert len(rig.renderer.asked) == 3
    rig.renderer.allow()
    assert [counts(await finished(service, each)) for each in begun] == [(10, 0, 10, 0)] * 2


async def test_a_full_router_is_waited_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """When others have taken every place the warm-up rests as long as the refusal says, and then goes on."""
    rests: list[float] = []

    async def rest(seconds: float) -> None:
        rests.append(seconds)
        rig.renderer.allow()
        await asyncio.sleep(0.01)

    service = rig.service(max_queued=1)
    monkeypatch.setattr(service.warming, "_sleep", rest)
    rig.renderer.hold()
    asked = asyncio.create_task(service.generate(ask("somebody's")))
    await until(lambda: len(rig.renderer.asked) == 1)
    ended = await finished(service, await service.warming.begin(request("Anna")))
    assert counts(ended) == (1, 0, 1, 0)
    assert rests
    assert all(seconds >= 1 for seconds in rests)
    assert (await asked).outcome is Outcome.RENDERED


async def test_progress_is_told_while_it_goes_on(rig: Rig) -> None:
    """Counts grow as items end, and seconds left follow from the pace so far."""
    now = [0.0]
    service = rig.service(warm_up_renders=1)
    service.warming._timer = lambda: now[0]
    rig.renderer.hold()
    begun = await service.warming.begin(request("Anna", "Bert", "Carl", "Dora"))
    assert (begun.status, counts(begun), begun.eta_seconds) == (WarmStatus.IN_PROGRESS, (4, 0, 0, 0), None)
    now[0] = 10.0
    rig.renderer.allow(rig.renderer.total)
    await until(lambda: len(rig.renderer.asked) == 2)
    seen = await service.warming.get(begun.id)
    assert (counts(seen), seen.eta_seconds) == ((4, 0, 1, 0), 30.0)
    rig.renderer.allow()
    assert (await finished(service, begun)).eta_seconds is None


async def test_a_cancelled_warm_up_renders_no_more(shared_rig: Rig) -> None:
    """DELETE ends the renders that nobody else waits for; what somebody asked for goes on; another router hears it."""
    one, two = shared_rig.service(warm_up_renders=2), shared_rig.service()
    shared_rig.renderer.hold()
    begun = await one.warming.begin(request("Anna", "Bert", "Carl"))
    await until(lambda: len(shared_rig.renderer.asked) == 2)
    waiting = asyncio.create_task(one.generate(ask("a red heart grows for Anna")))
    await until(lambda: one._waiting == 1)
    ended = await two.warming.cancel(begun.id)
    assert (ended.status, counts(ended)) == (WarmStatus.CANCELLED, (3, 0, 0, 0))
    await until(lambda: not one.warming.stats()["running"])  # it hears of it when it writes
    shared_rig.renderer.allow()
    assert (await waiting).outcome is Outcome.JOINED
    assert len(shared_rig.renderer.asked) == 2
    assert await one.warming.cancel(begun.id) == await two.warming.get(begun.id) == ended


async def test_cancelled_where_it_runs_it_ends_at_once(rig: Rig) -> None:
    """On its own router the renders end at their next step, without the linger."""
    service = rig.service(linger_seconds=3600, warm_up_renders=2)
    rig.renderer.hold()
    begun = await service.warming.begin(request("Anna", "Bert", "Carl"))
    await until(lambda: len(rig.renderer.asked) == 2)
    assert (await service.warming.cancel(begun.id)).status is WarmStatus.CANCELLED
    await until(lambda: len(rig.renderer.cancelled) == 2)
    assert service.warming.stats() == {"running": 0}


async def test_what_is_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many items, an item off the model's grid, too many warm-ups, no durable tier: refused, nothing begun."""
    service = rig.service()
    numbers = [str(number) for number in range(101)]
    many = {"prompt": "{a} {b}", "variables": {"a": numbers, "b": numbers[:100]}}
    with pytest.raises(Unprocessable, match=f"10,100 requests; at most {MAX_ITEMS:,}"):
        await service.warming.begin({"templates": [many]})
    for bad, param in (({"size": "33x33"}, "templates[1].size"), ({"model": "other"}, "templates[1].model")):
        with pytest.raises(Unprocessable) as raised:
            await service.warming.begin({"templates": [{"prompt": "fine"}, {"prompt": "fine"} | bad]})
        assert raised.value.param == param
        assert raised.value.message.startswith("templates[1]: ")
    with pytest.raises(Unprocessable, match=r"templates\[0\]: 'prompt' is empty"):
        await service.warming.begin({"templates": [{"prompt": "{a}", "variables": {"a": ["fine", " "]}}]})
    with pytest.raises(NotFound):
        await service.warming.get("warm_nobody")
    rig.renderer.hold()
    for number in range(MAX_RUNNING):
        await service.warming.begin(request(str(number)))
    with pytest.raises(Busy):
        await service.warming.begin(request("one more"))
    bare = Rig(None).service()
    with pytest.raises(Unavailable):
        await bare.warming.begin(request("Anna"))
    await bare.aclose()


async def test_an_estimate_counts_and_renders_nothing(shared_rig: Rig) -> None:
    """A dry run tells what is there, what is missing, and the seconds that the last renders say it takes."""
    service = shared_rig.service()
    wanted = request("Anna", "Bert", "Carl", "anna", "Dora", **TINY)
    before = await service.warming.estimate(wanted)
    assert (before.total, before.duplicates, before.there, before.missing, before.unknown) == (4, 1, 0, 4, 0)
    assert (before.seconds_per_render, before.render_seconds) == (None, None)
    shared_rig.renderer.meta = {"render_seconds": 1.5, "encode_seconds": 0.5}
    await finished(service, await service.warming.begin(request("Anna", "Bert", **TINY)))
    asked = len(shared_rig.renderer.asked)
    after = await service.warming.estimate(wanted)
    assert (after.total, after.duplicates, after.there, after.missing) == (4, 1, 2, 2)
    assert (after.seconds_per_render, after.render_seconds) == (pytest.approx(2.0), pytest.approx(4.0))
    keys = [service.planner.plan(ask(f"a red heart grows for {shop}", **TINY)).keys.video for shop in ("Carl", "Dora")]
    assert list(after.missing_keys) == keys
    fresh = await shared_rig.service().warming.estimate(wanted)  # learns from a video that is there
    assert fresh.render_seconds == pytest.approx(4.0)
    assert len(shared_rig.renderer.asked) == asked
    done = await service.warming.estimate(request("Anna", **TINY))
    assert (done.missing, done.seconds_per_render, done.render_seconds) == (0, None, 0.0)


# How long L2 keeps what was warmed.


class FinishingRenderer(ScriptedRenderer):
    """Ends every render as the product does: a VideoWriter that writes L3, then L2 and the flight's end in a script."""

    def __init__(self, rig: Rig, flights: RedisFlightRecords) -> None:
        super().__init__(rig.cache(l1=False))
        self._finisher = VideoWriter(rig.cache(l1=False), rig.telemetry, flights)

    async def render(self, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        self.asked.append(request.keys.video)
        yield Started("miss")
        for step in range(1, self.total + 1):
            if self._held:
                await self._steps.acquire()
            yield Progress(step, self.total)
        frames = np.zeros((request.spec.num_frames, request.spec.height, request.spec.width, 3), np.uint8)
        finished: Finished = await self._finisher.finish(request, frames, 0.1)
        yield finished


@dataclass
class Kept:
    """A router whose renders end in real scripts, and a look at what L2 keeps."""

    service: VideoService
    renderer: FinishingRenderer
    redis: RedisTier

    async def days(self, shop: str) -> float:
        """How long L2 keeps the video of `shop`, in days; -1 without a limit."""
        key = self.service.planner.plan(ask(f"a red heart grows for {shop}", **TINY)).keys.video
        name = redis_name(self.service._cache._remotes[0]._name(key))
        left = await self.redis.client.pttl(name)
        assert left != -2, "it is not there"
        return left / 1000 / DAY


@pytest.fixture
async def kept(shared_rig: Rig) -> AsyncIterator[Kept]:
    redis = shared_rig.redis()
    assert redis is not None
    flights = RedisFlightRecords(redis, secret=SECRET, linger_seconds=0.05)
    renderer = FinishingRenderer(shared_rig, flights)
    yield Kept(shared_rig.service(renderer=renderer, flights=flights), renderer, redis)
    renderer.allow()
    await flights.aclose()


@pytest.mark.parametrize(("ttl", "days"), [(None, 3), ("12h", 0.5), ("30d", 30)])
async def test_l2_keeps_a_warmed_video_for_its_ttl(kept: Kept, ttl: str | None, days: float) -> None:
    """Unasked, a warmed video stays for the item's ttl, three days unless said (the tier spreads it by a tenth)."""
    begun = await kept.service.warming.begin(request("Anna", **TINY) | {"ttl": ttl})
    await finished(kept.service, begun)
    assert 0.89 * days < await kept.days("Anna") < 1.11 * days


async def test_a_use_keeps_it_as_long_as_any_other_and_never_shorter(kept: Kept) -> None:
    """From its first use on a video is kept for L2's own time since then; a longer ttl of a warm-up stays."""
    for shop, ttl in (("Anna", "12h"), ("Bert", "30d")):
        await finished(kept.service, await kept.service.warming.begin(request(shop, **TINY) | {"ttl": ttl}))
        answer = await kept.service.generate(ask(f"a red heart grows for {shop}", **TINY))
        assert answer.outcome is Outcome.L2
    week = WEEK / DAY
    assert 0.89 * week < await kept.days("Anna") < 1.11 * week
    assert await kept.days("Bert") > 26


async def test_a_warm_up_keeps_longer_what_is_there(kept: Kept) -> None:
    """What somebody asked for before is kept for the ttl if that is longer, and never for less than it had."""
    for shop in ("Anna", "Bert"):
        await kept.service.generate(ask(f"a red heart grows for {shop}", **TINY))
    for shop, ttl in (("Anna", "30d"), ("Bert", "1h")):
        ended = await finished(kept.service, await kept.service.warming.begin(request(shop, **TINY) | {"ttl": ttl}))
        assert counts(ended) == (1, 1, 0, 0)
    assert await kept.days("Anna") > 26
    assert await kept.days("Bert") > 6


async def test_what_l3_alone_has_comes_back_to_l2_for_its_ttl(kept: Kept) -> None:
    """A warm-up of a video that L2 has forgotten puts it there again, and renders nothing."""
    await finished(kept.service, await kept.service.warming.begin(request("Anna", **TINY)))
    await kept.redis.client.flushall()
    ended = await finished(kept.service, await kept.service.warming.begin(request("Anna", **TINY) | {"ttl": "12h"}))
    assert counts(ended) == (1, 1, 0, 0)
    assert 0.4 < await kept.days("Anna") < 0.6
    assert len(kept.renderer.asked) == 1


async def test_what_this_process_alone_remembers_comes_back_to_l2(kept: Kept) -> None:
    """A video in this router's memory that L2 has forgotten is there again after a warm-up."""
    await kept.service.generate(ask("a red heart grows for Anna", **TINY))
    await kept.redis.client.flushall()
    await finished(kept.service, await kept.service.warming.begin(request("Anna", **TINY)))
    assert await kept.days("Anna") > 2


async def test_who_joins_a_warm_ups_render_gets_it_kept_as_any_other(kept: Kept) -> None:
    """Somebody asks while the warm-up renders it: it is kept from that use on, not for the warm-up's hour."""
    kept.renderer.hold()
    begun = await kept.service.warming.begin(request("Anna", **TINY) | {"ttl": "1h"})
    await until(lambda: len(kept.renderer.asked) == 1)
    waiting = asyncio.create_task(kept.service.generate(ask("a red heart grows for Anna", **TINY)))
    await until(lambda: kept.service._waiting == 1)
    kept.renderer.allow()
    assert (await waiting).outcome is Outcome.JOINED
    await finished(kept.service, begun)
    assert await kept.days("Anna") > 6
    assert (await kept.service.generate(ask("a red heart grows for Anna", **TINY))).outcome is Outcome.L1


async def test_a_warm_up_that_joins_somebodys_render_has_it_kept_for_its_ttl(kept: Kept) -> None:
    """Somebody's render is under way when the warm-up comes: there is no second one, and it is kept for the ttl."""
    kept.renderer.hold()
    asked = asyncio.create_task(kept.service.generate(ask("a red heart grows for Anna", **TINY)))
    await until(lambda: len(kept.renderer.asked) == 1)
    begun = await kept.service.warming.begin(request("Anna", **TINY) | {"ttl": "30d"})
    key = kept.service.planner.plan(ask("a red heart grows for Anna", **TINY)).keys.video
    flight = kept.service._loader._flights.find(key)
    assert flight is not None
    await until(lambda: flight.waiters == 2)
    kept.renderer.allow()
    assert (await asked).outcome is Outcome.RENDERED
    assert counts(await finished(kept.service, begun)) == (1, 0, 1, 0)
    assert await kept.days("Anna") > 26
    assert len(kept.renderer.asked) == 1


# Crashes.


async def test_another_router_goes_on_after_a_crash(shared_rig: Rig) -> None:
    """The runner vanishes in the middle: within seconds another one claims the warm-up and counts on from there."""
    one, two = shared_rig.service(warm_up_renders=1), shared_rig.service()
    shared_rig.renderer.hold()
    begun = await one.warming.begin(request("Anna", "Bert", "Carl", "Dora"))
    shared_rig.renderer.allow(2 * shared_rig.renderer.total)
    await until(lambda: len(shared_rig.renderer.asked) == 3)
    await one.warming._sweeper.round()  # the second that was written last
    await crash(one)
    await two.warming._sweeper.round()
    assert (await two.warming.get(begun.id)).status is WarmStatus.IN_PROGRESS
    assert two.warming.stats() == {"running": 0}
    shared_rig.clock.now += 5
    shared_rig.renderer.allow()
    await two.warming._sweeper.round()
    assert two.warming.stats() == {"running": 1}
    ended = await finished(two, begun)
    # What was in the air at the crash may have landed by itself, and is there then.
    assert (ended.status, ended.done, ended.failed) == (WarmStatus.COMPLETED, 4, 0)
    assert ended.rendered >= 3
    assert len(set(shared_rig.renderer.asked)) == 4


async def crash(service: VideoService) -> None:
    """Let a router's warm-ups stop as in a SIGKILL: nothing is written or handed over."""
    warming = service.warming
    await warming._sweeper.aclose()
    tasks = [run.task for run in warming._runs.values() if run.task is not None]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_warm_up_that_redis_lost_is_written_anew(shared_rig: Rig) -> None:
    """Redis comes back empty: whoever runs the warm-up restores its record, templates and all."""
    service = shared_rig.service(warm_up_renders=1)
    shared_rig.renderer.hold()
    begun = await service.warming.begin(request("Anna", "Bert"))
    await until(lambda: len(shared_rig.renderer.asked) == 1)
    await shared_rig.pools[0].client.flushall()
    await service.warming._sweeper.round()
    assert await shared_rig.warm_ups().get(begun.id) is not None
    await crash(service)
    shared_rig.clock.now += 5
    (held,) = await shared_rig.warm_ups().claim(9, "somebody")
    assert (held.warm_up.id, held.request) == (begun.id, request("Anna", "Bert"))
    shared_rig.renderer.allow()


async def test_a_runner_whose_warm_up_was_taken_over_stops(shared_rig: Rig) -> None:
    """A router that stood still for too long finds another one at work, and leaves it to that."""
    one, two = shared_rig.service(), shared_rig.service()
    shared_rig.renderer.hold()
    begun = await one.warming.begin(request("Anna", "Bert"))
    await until(lambda: len(shared_rig.renderer.asked) == 2)
    await one.warming._sweeper.aclose()
    shared_rig.clock.now += 5
    await two.warming._adopt()
    await one.warming._write_all()
    assert (one.warming.stats(), two.warming.stats()) == ({"running": 0}, {"running": 1})
    shared_rig.renderer.allow()
    ended = await finished(two, begun)
    assert (ended.status, ended.done, ended.failed) == (WarmStatus.COMPLETED, 2, 0)


async def test_a_warm_up_that_no_release_understands_any_more_is_ended(shared_rig: Rig) -> None:
    """Templates that were allowed once and are not now: whoever adopts the warm-up ends it and says why."""
    service, store = shared_rig.service(), shared_rig.warm_ups()
    now = shared_rig.clock.now
    for number, templates in enumerate(([{"prompt": "a star", "mood": "fine"}], [{"prompt": "a star", "size": "1x1"}])):
        warm_up = WarmUp(
            id=f"warm_{number}", created_at=now, updated_at=now, expires_at=now + 1000, total=1, duplicates=0
        )
        await store.add(Held(warm_up, {"templates": templates}), "somebody of yesterday")
    shared_rig.clock.now += 5
    await service.warming._sweeper.round()
    for number, told in enumerate(("Unknown field 'mood'", "'size' 1x1 is not offered")):
        ended = await finished(service, await service.warming.get(f"warm_{number}"))
        assert ended.status is WarmStatus.CANCELLED
        assert told in ended.errors[0].message
    await until(lambda: not service.warming.stats()["running"])


class KeyPlanner:
    """Plans a prompt that is a key of the simulated cluster."""

    def plan(self, request: VideoRequest) -> Plan:
        keys = Keys("p", "n", "l", request.prompt)
        return Plan(request.prompt, SPEC, keys, urgency=Urgency(Priority.WARM_UP))


class StoreLink:
    """The way of one simulated process to the records, which Redis keeps."""

    def __init__(self, cluster: Cluster, process: Process, store: MemoryWarmUps) -> None:
        self._cluster = cluster
        self._process = process
        self._store = store

    async def _do(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return await self._process.ask(lambda: at_once(work()))

    async def add(self, held: Held, runner: str) -> None:
        await self._do(lambda: self._store.add(held, runner))

    async def write(self, warm_up: WarmUp, runner: str | None) -> Written:
        return await self._do(lambda: self._store.write(warm_up, runner))

    async def claim(self, limit: int, runner: str) -> tuple[Held, ...]:
        return await self._do(lambda: self._store.claim(limit, runner))

    async def get(self, warm_up_id: str) -> WarmUp | None:
        return await self._do(lambda: self._store.get(warm_up_id))


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("it waits")


@pytest.fixture(params=range(10))
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Three routers and two renderers; a render is two steps of half a second."""
    shape = Shape(routers=3, diffusions=2, keys=12, steps=2, step_seconds=0.5)
    with simulated(Cluster(shape, request.param)) as made:
        yield made
    assert not made.world.errors


def test_routers_die_again_and_again_and_every_video_is_rendered_once(cluster: Cluster) -> None:
    """Whichever router dies when, and how often, and while some are paused: the warm-up ends, its counts are right."""
    world = cluster.world
    store = MemoryWarmUps(lambda: world.now)

    def warming(place: int) -> Warming:
        router = cluster.routers[place]
        made = Warming(
            StoreLink(cluster, router.process, store), KeyPlanner(), router.source, router.cache,  # type: ignore[arg-type]
            lambda plan, ttl: router.source.join_or_lead(plan.spec, plan.keys, plan.urgency, ttl=ttl),
            concurrency=3, keep_seconds=1e6, clock=lambda: world.now, timer=lambda: world.now,
        )  # fmt: skip
        router.process.post(made.start)
        return made

    routers = [warming(place) for place in range(3)]
    begun: list[WarmUp] = []
    wanted = {"templates": [{"prompt": "key{n}", "variables": {"n": list(range(12))}}]}

    async def begin() -> None:
        begun.append(await routers[0].begin(wanted))

    cluster.routers[0].process.spawn(begin())
    world.run(world.now + 0.8, lambda: bool(begun))
    for _ in range(4):
        world.run(world.now + world.random.uniform(0.2, 4.0))
        place = world.random.randrange(3)
        if world.random.random() < 0.3:
            cluster.routers[place].process.pause(world.random.uniform(4.0, 8.0))
        else:
            cluster.kill_router(place)
            routers[place] = warming(place)

    def newest() -> WarmUp:
        found = at_once(store.get(begun[0].id))
        assert found is not None
        return found

    world.run(world.now + 120, lambda: newest().status.is_final)
    ended = newest()
    assert ended.status is WarmStatus.COMPLETED
    assert (ended.total, ended.done, ended.failed) == (12, 12, 0)
    assert sorted(render.key for render in cluster.renders) == sorted(cluster.keys)
    assert set(cluster.redis.model.values) == set(cluster.keys)


def test_the_record_is_json() -> None:
    """A record says nothing that JSON cannot, and a field that a later release adds is passed over."""
    warm_up = WarmUp(id="warm_1", created_at=1.0, updated_at=1.0, expires_at=2.0, total=3, duplicates=0)
    later = replace(warm_up, position=2)
    assert WarmUp.from_json(later.to_json()) == later
    assert WarmUp.from_json(later.to_json().replace(b'{"id"', b'{"new":1,"id"')) == later
    assert set(asdict(later)) >= {"position", "ahead"}
