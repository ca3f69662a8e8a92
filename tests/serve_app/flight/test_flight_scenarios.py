"""What one flight in the cluster owes its waiters, case by case, in virtual time and so to the tenth of a second.

The same world as in the simulation, each case under several seeds, which is to say under other latencies.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator

import pytest

from serve_app.core import Outcome, Progress, Started
from serve_app.errors import RenderCrashed, RenderFailed
from serve_app.flight.attempts import MAX_ATTEMPTS
from serve_app.flight.heartbeat import Heartbeat
from serve_app.flight.record import BEAT_SECONDS, LEASE_SECONDS, POLL_SECONDS, FlightState
from tests.serve_app.flight.flight_cluster import LINGER, PLACES, Cluster, Render, Shape, Wait, simulated
from tests.serve_app.flight.flight_model import Air, FlightModel, MemoryFlightRecords

SEEDS = range(8)
MOMENT = 0.6
"""A few messages, each of which may take a tenth of a second."""
KEY = "key0"


@pytest.fixture(params=SEEDS)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Three routers and two renderers; a render is eight steps of a second."""
    with simulated(Cluster(Shape(routers=3, diffusions=2, keys=6, steps=8, step_seconds=1.0), request.param)) as made:
        yield made
    assert not made.world.errors


def pass_time(cluster: Cluster, seconds: float) -> None:
    cluster.world.run(cluster.world.now + seconds)


def all_answered(cluster: Cluster, within: float) -> float:
    """Run until every wait is over; return the time."""
    end = cluster.world.now + within
    cluster.world.run(end, lambda: all(wait.is_over for wait in cluster.waits))
    assert all(wait.is_over for wait in cluster.waits)
    return cluster.world.now


def serving(cluster: Cluster, render: Render) -> int:
    """The place of the renderer that runs `render`."""
    return [diffusion.process for diffusion in cluster.diffusions].index(render.diffusion)


def leader(cluster: Cluster, render: Render) -> int:
    """The place of the router that asked for `render`."""
    return [router.process for router in cluster.routers].index(render.router)


def got_video(waits: list[Wait]) -> bool:
    return all(wait.flight_result is not None and wait.flight_result.stored for wait in waits)


def test_a_storm_is_one_render(cluster: Cluster) -> None:
    """300 who ask at once on three routers get one render's bytes; on one of them it is `rendered`, else `joined`."""
    waits = [cluster.ask(number, KEY) for number in range(300)]
    assert all_answered(cluster, 60) < 8 + 4 * MOMENT
    assert got_video(waits)
    assert len(cluster.renders) == 1
    rendered = {wait.router for wait in waits if wait.flight_result and wait.flight_result.outcome is Outcome.RENDERED}
    joined = {wait.router for wait in waits if wait.flight_result and wait.flight_result.outcome is Outcome.JOINED}
    assert (len(rendered), len(joined)) == (1, 2)


def test_a_routers_death_costs_nothing(cluster: Cluster) -> None:
    """When the leading router dies mid-render the others are answered on time, by the same render."""
    for router in range(3):
        cluster.ask(router, KEY)
    pass_time(cluster, 4)
    cluster.kill_router(leader(cluster, cluster.renders[0]))
    assert all_answered(cluster, 60) < 8 + 4 * MOMENT
    assert got_video([wait for wait in cluster.waits if wait.router.alive])
    assert len(cluster.renders) == 1


def test_a_render_without_any_router_is_stored(cluster: Cluster) -> None:
    """When the only router with waiters dies its render finishes, is stored, and answers whoever asks next."""
    cluster.ask(0, KEY)
    pass_time(cluster, 4)
    cluster.kill_router(0)
    pass_time(cluster, 10)
    assert KEY in cluster.objects
    assert cluster.redis.model.records[KEY].state is FlightState.LANDED
    wait = cluster.ask(1, KEY)
    all_answered(cluster, 1)
    assert wait.flight_result is not None
    assert wait.flight_result.outcome is Outcome.L2
    assert len(cluster.renders) == 1


def test_a_renderers_death_is_known_at_once_to_its_router(cluster: Cluster) -> None:
    """The router whose stream broke has it rendered again without waiting for the lease; all get that one."""
    for router in range(3):
        cluster.ask(router, KEY)
    pass_time(cluster, 4)
    cluster.kill_diffusion(serving(cluster, cluster.renders[0]))
    assert all_answered(cluster, 60) < 4 + 8 + 6 * MOMENT
    assert got_video(cluster.waits)
    assert len(cluster.renders) == 2


def test_a_waiter_takes_over_within_a_lease_and_a_second(cluster: Cluster) -> None:
    """When renderer and leading router die together, another router's waiter leads within lease + 1 s."""
    for router in range(3):
        cluster.ask(router, KEY)
    pass_time(cluster, 4)
    first = cluster.renders[0]
    cluster.kill_diffusion(serving(cluster, first))
    cluster.kill_router(leader(cluster, first))
    all_answered(cluster, 60)
    assert got_video([wait for wait in cluster.waits if wait.router.alive])
    assert len(cluster.renders) == 2
    assert cluster.renders[1].asked_at - 4 < LEASE_SECONDS + POLL_SECONDS + MOMENT


def test_a_hanging_renderer_is_replaced_and_stops_when_it_wakes(cluster: Cluster) -> None:
    """A paused replica loses the flight after its lease; awake again it drops the render and stores nothing."""
    for router in range(3):
        cluster.ask(router, KEY)
    pass_time(cluster, 4)
    zombie = cluster.renders[0]
    hanging = cluster.diffusions.pop(serving(cluster, zombie))  # it does not answer Serve, which asks before it sends
    hanging.process.pause(12)
    assert all_answered(cluster, 60) < 4 + LEASE_SECONDS + 3 * POLL_SECONDS + 8 + 4 * MOMENT
    assert got_video(cluster.waits)
    pass_time(cluster, 30)
    assert not zombie.ended
    assert not hanging.engine._jobs
    assert len({wait.flight_result.entry.digest for wait in cluster.waits if wait.flight_result}) == 1


def test_the_leaders_client_leaves_and_the_render_goes_on(cluster: Cluster) -> None:
    """Followers on other routers keep a render that its first asker deleted."""
    first = cluster.ask(0, KEY, 3.0, at_once=True)
    pass_time(cluster, 1)
    others = [cluster.ask(router, KEY) for router in (1, 2)]
    assert all_answered(cluster, 60) < 8 + 4 * MOMENT
    assert first.left
    assert got_video(others)
    assert len(cluster.renders) == 1


@pytest.mark.parametrize(("at_once", "after"), [(True, 0.0), (False, LINGER)])
def test_the_last_one_leaves(cluster: Cluster, at_once: bool, after: float) -> None:
    """A render nobody waits for ends at its next heartbeat: after the linger, or at once when it was deleted."""
    waits = [cluster.ask(router, KEY, 2.0, at_once=at_once) for router in range(3)]
    pass_time(cluster, 2.0 + after - MOMENT)
    assert [*cluster.diffusions[serving(cluster, cluster.renders[0])].engine._jobs] == [KEY]
    pass_time(cluster, MOMENT + BEAT_SECONDS + 3 * MOMENT)
    assert all(wait.left for wait in waits)
    assert not any(diffusion.engine._jobs for diffusion in cluster.diffusions)
    assert not any(len(router.source) for router in cluster.routers)
    assert cluster.redis.model.records[KEY].state is FlightState.CANCELLED
    assert not cluster.objects


def test_somebody_comes_within_the_linger(cluster: Cluster) -> None:
    """A render that lingers is joined by who comes in time, also on another router, and then goes on."""
    cluster.ask(0, KEY, 1.0)
    pass_time(cluster, LINGER)
    late = cluster.ask(1, KEY)
    assert all_answered(cluster, 60) < 8 + 4 * MOMENT
    assert got_video([late])
    assert len(cluster.renders) == 1


def test_a_failure_reaches_every_waiter_once(cluster: Cluster) -> None:
    """One failed render fails all who waited for it, at once; it is not stored: who asks then gets a new render."""
    waits = [cluster.ask(router, KEY) for router in range(3) for _ in range(3)]
    pass_time(cluster, 4)
    cluster.poisoned[KEY] = True
    assert all_answered(cluster, 60) < 5 + 6 * MOMENT
    assert [str(wait.error) for wait in waits] == ["The model diverged."] * 9
    assert all(type(wait.error) is RenderFailed for wait in waits)
    assert len(cluster.renders) == 1
    again = [cluster.ask(router, KEY) for router in range(3)]
    all_answered(cluster, 60)
    assert got_video(again)
    assert len(cluster.renders) == 2


def test_a_deadly_render_ends_and_tells_all(cluster: Cluster) -> None:
    """A video whose render kills its process is tried so often and no more; all who wait are told once, and why."""
    cluster.deadly.add(KEY)
    for router in range(3):
        cluster.ask(router, KEY)
    all_answered(cluster, 120)
    assert all(type(wait.error) is RenderCrashed for wait in cluster.waits)
    assert f"{MAX_ATTEMPTS} times" in str(cluster.waits[0].error)
    assert len(cluster.renders) == MAX_ATTEMPTS
    began = [render.began_at for render in cluster.renders]
    pauses = [later - sooner for sooner, later in itertools.pairwise(began)]
    assert all(pause > 2**number for number, pause in enumerate(pauses))
    for router in range(3):  # remembered for a while, wherever it is asked for again
        cluster.ask(router, KEY)
    all_answered(cluster, 10)
    assert len(cluster.renders) == MAX_ATTEMPTS
    assert all(type(wait.error) is RenderCrashed for wait in cluster.waits)


def test_bystanders_of_a_deadly_render_are_done(cluster: Cluster) -> None:
    """Who shares a process with it loses a render by its first death there, and is never begun beside it again."""
    cluster.deadly.add(KEY)
    waits = [cluster.ask(number % 3, key) for number, key in enumerate(cluster.keys)]
    all_answered(cluster, 300)
    assert type(waits[0].error) is RenderCrashed
    assert got_video(waits[1:])
    tries = Counter(render.key for render in cluster.renders)
    assert tries[KEY] == MAX_ATTEMPTS
    assert all(tries[key] <= 2 for key in cluster.keys[1:])


def test_killed_from_outside_every_job_is_done(cluster: Cluster) -> None:
    """Four kills in 54 s, each in the middle of renders: nobody's video fails for it."""
    waits = [cluster.ask(number % 3, key) for number, key in enumerate(cluster.keys[:5])]
    for _ in range(4):
        pass_time(cluster, 12)
        for place in range(len(cluster.diffusions)):
            cluster.kill_diffusion(place)
    all_answered(cluster, 300)
    assert got_video(waits)


def test_while_no_replica_is_up_jobs_wait(cluster: Cluster) -> None:
    """With every replica gone for two minutes nobody is failed; when one is back all is rendered."""
    gone, cluster.diffusions = cluster.diffusions, []
    waits = [cluster.ask(number % 3, key) for number, key in enumerate(cluster.keys)]
    pass_time(cluster, 120)
    assert not any(wait.is_over for wait in waits)
    cluster.diffusions = gone
    all_answered(cluster, 60)
    assert got_video(waits)


def test_what_waited_in_a_dying_process_has_no_attempt(cluster: Cluster) -> None:
    """A death counts against what had begun there; what its process had only taken is as it was."""
    cluster.diffusions[0].engine.isolation.begin("something else")
    cluster.diffusions[0].engine.isolation._suspects[0, 0] = (
        "suspect",
        cluster.routers[0].process.loop.create_future(),
    )
    cluster.diffusions.pop()
    cluster.ask(0, KEY)
    pass_time(cluster, 1)
    assert cluster.diffusions[0].worker._flights.find(KEY) is not None
    cluster.kill_diffusion(0)
    all_answered(cluster, 60)
    assert got_video(cluster.waits)
    assert not cluster.attempts._counts


def test_a_render_that_freezes_is_begun_a_few_times(cluster: Cluster) -> None:
    """One whose process stands still at every step, longer than its lease, ends like one that kills it."""
    cluster.freezing.add(KEY)
    for router in range(3):
        cluster.ask(router, KEY)
    all_answered(cluster, 300)
    assert all(type(wait.error) is RenderCrashed for wait in cluster.waits)
    assert len(cluster.renders) <= MAX_ATTEMPTS


@pytest.mark.parametrize("fails", [False, True])
def test_lost_messages_cost_a_second(cluster: Cluster, fails: bool) -> None:
    """Who hears nothing finds the end of the flight, good or bad, at its next look."""
    cluster.redis.deaf_until = 1e9
    waits = [cluster.ask(router, KEY) for router in range(3)]
    pass_time(cluster, 7)
    if fails:
        cluster.poisoned[KEY] = True
    assert all_answered(cluster, 60) < 8 + POLL_SECONDS + 4 * MOMENT
    assert all(isinstance(wait.error, RenderFailed) for wait in waits) if fails else got_video(waits)
    assert len(cluster.renders) == 1


def test_a_flight_waits_for_a_place_longer_than_its_lease(cluster: Cluster) -> None:
    """A render that no replica has taken yet is kept by its router: nobody else leads it meanwhile."""
    busy = PLACES * len(cluster.diffusions)
    for number in range(busy):
        cluster.ask(0, cluster.keys[number])
    pass_time(cluster, 1)
    for router in range(3):
        cluster.ask(router, cluster.keys[busy])
    assert all_answered(cluster, 60) < 8 + 8 + 8 * MOMENT
    assert got_video(cluster.waits)
    assert sorted(render.key for render in cluster.renders) == cluster.keys[: busy + 1]
    assert set(cluster.redis.model.leads.values()) == {1}


@pytest.mark.parametrize("forget", [False, True])
def test_redis_goes_away_in_the_middle(cluster: Cluster, forget: bool) -> None:
    """The render under way answers its own router, followers find it in L3 or render; afterwards nothing is wrong."""
    for router in range(3):
        cluster.ask(router, KEY)
    pass_time(cluster, 4)
    cluster.redis_away(7, forget=forget)
    all_answered(cluster, 60)
    assert got_video(cluster.waits)
    assert len(cluster.renders) <= 1 + len(cluster.routers)
    pass_time(cluster, 15)
    cluster.redis.model.flush()
    before = len(cluster.renders)
    again = [cluster.ask(router, cluster.keys[1]) for router in range(3)]
    all_answered(cluster, 60)
    assert got_video(again)
    assert len(cluster.renders) == before + 1


def test_without_redis_from_the_start_everybody_is_answered(cluster: Cluster) -> None:
    """Each process renders by itself, one render at most each, and what L3 has is not rendered again."""
    cluster.redis_away(1e6, forget=True)
    waits = [cluster.ask(router, KEY) for router in range(3) for _ in range(3)]
    assert all_answered(cluster, 60) < 8 + 12 * MOMENT
    assert got_video(waits)
    before = len(cluster.renders)
    assert before <= 3
    cluster.ask(0, KEY)
    all_answered(cluster, 5)
    assert len(cluster.renders) == before


def test_followers_see_the_leaders_progress(cluster: Cluster) -> None:
    """Started and every step reach those who wait on another router."""
    cluster.ask(0, KEY)
    pass_time(cluster, 0.5)
    cluster.ask(1, KEY)
    pass_time(cluster, 6)
    flight = cluster.routers[1].source._flights.find(KEY)
    assert flight is not None
    assert Started("miss") in flight.events
    steps = [news.step for news in flight.events if isinstance(news, Progress)]
    assert steps == sorted(set(steps))
    assert len(steps) >= 5
    all_answered(cluster, 60)


@pytest.mark.parametrize("turns", range(8))
async def test_a_heartbeat_ends_whenever_its_render_does(turns: int) -> None:
    """However close to a step it is cancelled, a heartbeat ends: else it would keep a flight that is nobody's."""
    records = MemoryFlightRecords(FlightModel(), Air(), lambda: 1000.0)
    heartbeat = Heartbeat(records, KEY, 1, embedding="", stop=lambda: None, hurry=lambda urgency: None)
    beating = asyncio.create_task(heartbeat.run())
    await asyncio.sleep(0.01)
    heartbeat.step(1, 2)
    for _ in range(turns):
        await asyncio.sleep(0)
    beating.cancel()
    await asyncio.wait({beating}, timeout=1)
    assert beating.cancelled()
