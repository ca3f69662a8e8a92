"""The flight record row by row of its table, on a real Valkey and on the plain-Python twin that simulations use.

What only a server can do (messages, restarts, large values, its own clock) is tested on the Valkey alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

from serve_app.cache.redis.redis import RedisTier
from serve_app.core import Priority, Urgency
from serve_app.errors import TierError
from serve_app.flight.record import (
    LEASE_SECONDS,
    POLL_SECONDS,
    WAITER_SECONDS,
    Beat,
    Ended,
    FlightRecords,
    FlightState,
    FlightStatus,
    Found,
    HolderStatus,
    Idle,
    Joined,
    Leading,
    priority_of,
    rank,
)
from serve_app.flight.redis_record import RedisFlightRecords
from tests.conftest import ValkeyServer
from tests.serve_app.flight.flight_model import Air, FlightModel, MemoryFlightRecords

LINGER = 30.0
PATIENT = {"connect_timeout": 30.0, "socket_timeout": 30.0, "deadline": 60.0}
"""A busy test machine is no broken server."""
CALM = Urgency(Priority.WARM_UP)


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.off = 0.0

    def __call__(self) -> float:
        """What no step of a server's clock changes."""
        return self.now

    def server(self) -> float:
        return self.now + self.off


@dataclass
class Bench:
    """Records with a clock to turn by hand, and what a server loses when it is told to."""

    records: FlightRecords
    clock: Clock
    forget_all: Callable[[], object]
    forget_value: Callable[[str], object]

    async def lead(self, waiter: str = "leader", key: str = "k") -> int:
        """Board as the first one; return the token."""
        join_result = await self.records.join_or_lead(key, waiter, CALM)
        assert isinstance(join_result, Leading)
        return join_result.token

    async def join_or_lead(self, waiter: str, **named: Any) -> Any:
        return await self.records.join_or_lead("k", waiter, CALM, **named)

    async def looked(self, seconds: float) -> list[Any]:
        """Let time pass while one more waiter looks at the flight every second; return what it was told."""
        told = [await self.join_or_lead("observer")]
        for _ in range(round(seconds)):
            self.clock.now += 1
            told.append(await self.join_or_lead("observer"))
        return told

    async def beat(self, token: int, step: int = 0, state: FlightState = FlightState.RENDERING) -> Beat:
        return await self.records.beat("k", token, FlightStatus(token, state, step, 4, "hit"))

    async def state(self) -> FlightState | None:
        news = await self.records.look("k")
        return None if news is None else news.state


@pytest.fixture(params=["twin", "valkey"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    clock = Clock()
    if request.param == "twin":
        model = FlightModel(linger_seconds=LINGER)
        records = MemoryFlightRecords(model, Air(), clock.server, monotonic=clock)
        yield Bench(records, clock, model.flush, model.values.pop)
        return
    server: ValkeyServer = request.getfixturevalue("valkey_server")
    server.flush()
    tier = RedisTier(server.url, **PATIENT)
    flights = RedisFlightRecords(tier, secret=b"s", linger_seconds=LINGER, clock=clock.server, monotonic=clock)

    def forget_value(key: str) -> None:
        import redis

        with redis.Redis(unix_socket_path=str(server.socket)) as client:
            client.delete(flights._names(key)[0])

    yield Bench(flights, clock, server.flush, forget_value)
    await flights.aclose()
    await tier.close()


# No record.


async def test_the_first_leads_and_the_next_joins(bench: Bench) -> None:
    """One caller gets the lease, every other one follows it with what is known of it."""
    token = await bench.lead()
    assert await bench.join_or_lead("second") == Joined(FlightStatus(token, FlightState.WAITING))
    assert await bench.records.look("k") == FlightStatus(token, FlightState.WAITING)
    assert await bench.state() is FlightState.WAITING
    assert await bench.records.look("other") is None


async def test_who_works_takes_its_place_again_when_the_record_was_forgotten(bench: Bench) -> None:
    """After a flush the next heartbeat of a render puts its flight back, and waiters join it again."""
    token = await bench.lead()
    bench.forget_all()
    assert (await bench.beat(token, 2)).verdict is HolderStatus.HELD
    assert await bench.join_or_lead("leader") == Joined(FlightStatus(token, FlightState.RENDERING, 2, 4, "hit"))


@pytest.mark.parametrize("landed", [True, False])
async def test_a_flight_ends_without_a_record_too(bench: Bench, landed: bool) -> None:
    """A render whose record was forgotten still ends its flight, and the record it leaves is whole."""
    token = await bench.lead()
    bench.forget_all()
    if landed:
        assert await bench.records.complete("k", token, b"video", "{}")
        news = FlightStatus(token, FlightState.LANDED, detail="{}")
        assert await bench.join_or_lead("late") == Found(b"video", news)
    else:
        assert await bench.records.fail("k", token, "{}")
        news = FlightStatus(token, FlightState.FAILED, detail="{}")
        assert isinstance(await bench.join_or_lead("late"), Leading)
        return
    assert await bench.records.look("k") == news


# Waiting and rendering.


async def test_progress_is_seen_by_who_looks(bench: Bench) -> None:
    """Followers see the leader's state, step and embedding."""
    token = await bench.lead()
    await bench.beat(token, state=FlightState.WAITING)
    assert await bench.state() is FlightState.WAITING
    for step in (0, 1, 3):
        await bench.beat(token, step)
        assert await bench.join_or_lead("follower") == Joined(
            FlightStatus(token, FlightState.RENDERING, step, 4, "hit")
        )


async def test_the_most_urgent_waiter_decides(bench: Bench) -> None:
    """A holder hears at its heartbeat the highest priority and the earliest deadline of all who wait."""
    token = await bench.lead()
    assert (await bench.beat(token)).urgency == CALM
    await bench.records.join_or_lead("k", "a", Urgency(Priority.BATCH, 2000.5))
    await bench.records.join_or_lead("k", "b", Urgency(Priority.INTERACTIVE, 3000.0))
    await bench.records.join_or_lead("k", "c", CALM)
    assert (await bench.beat(token)).urgency == Urgency(Priority.INTERACTIVE, 2000.5)


def test_ranks_order_priorities() -> None:
    """Every priority has a rank of its own, the most urgent 0, and comes back from it."""
    assert [priority_of(rank(priority)) for priority in Priority] == list(Priority)
    assert rank(Priority.INTERACTIVE) == 0


async def test_keys_do_not_meet(bench: Bench) -> None:
    """Each key has a flight of its own."""
    first, second = await bench.lead(key="k"), await bench.lead(key="l")
    assert await bench.records.fail("l", second, "")
    assert (await bench.beat(first)).verdict is HolderStatus.HELD


# Expired.


async def test_a_silent_holder_is_replaced_and_fenced_off(bench: Bench) -> None:
    """Who has seen no heartbeat for a lease leads under a larger token; the old holder can end the flight no more."""
    old = await bench.lead()
    *joined, leading = await bench.looked(LEASE_SECONDS)
    assert all(isinstance(each, Joined) for each in joined)
    new = leading.token
    assert new > old
    assert (await bench.beat(old)).verdict is HolderStatus.LOST
    assert not await bench.records.complete("k", old, b"stale", "")
    assert not await bench.records.fail("k", old, "")
    assert await bench.join_or_lead("third") == Joined(FlightStatus(new, FlightState.WAITING))
    assert await bench.records.complete("k", new, b"fresh", "")
    assert (await bench.join_or_lead("third")).frame == b"fresh"


async def test_a_late_holder_that_nobody_replaced_goes_on(bench: Bench) -> None:
    """A pause longer than the lease costs nothing if nobody asked meanwhile: the lease runs again."""
    token = await bench.lead()
    bench.clock.now += 3 * LEASE_SECONDS
    assert (await bench.beat(token, 1)).verdict is HolderStatus.HELD
    assert isinstance(await bench.join_or_lead("next"), Joined)


async def test_heartbeats_keep_the_lease(bench: Bench) -> None:
    """A holder that beats is never replaced, however long it takes."""
    token = await bench.lead()
    for _ in range(20):
        bench.clock.now += LEASE_SECONDS - 0.5
        assert (await bench.beat(token)).verdict is HolderStatus.HELD
        assert isinstance(await bench.join_or_lead("other"), Joined)


async def test_a_leader_gives_up_its_own_try(bench: Bench) -> None:
    """Who knows that its own render broke off need not wait for the lease; somebody else's is left alone."""
    first = await bench.lead()
    again = await bench.join_or_lead("leader", given_up=first)
    assert isinstance(again, Leading)
    assert again.token > first
    assert isinstance(await bench.join_or_lead("other", given_up=first), Joined)
    assert (await bench.beat(first)).verdict is HolderStatus.LOST


async def test_tokens_ascend_when_the_clock_jumps_back(bench: Bench) -> None:
    """A server whose clock was set back still gives larger tokens than it gave before."""
    tokens = [await bench.lead()]
    for _ in range(3):
        bench.clock.now -= 3600
        join_result = await bench.join_or_lead("leader", given_up=tokens[-1])
        tokens.append(join_result.token)
    assert tokens == sorted(set(tokens))


@pytest.mark.parametrize("step", [900.0, -900.0, 86_400.0])
async def test_a_step_of_the_servers_clock_costs_at_most_a_lease(bench: Bench, step: float) -> None:
    """Set back or forward, a dead holder is replaced after a lease, and one that is alive is left alone."""
    token = await bench.lead()
    for _ in range(3):
        bench.clock.off += step
        for _ in range(8):
            bench.clock.now += 1
            assert (await bench.beat(token)).verdict is HolderStatus.HELD
            assert isinstance(await bench.join_or_lead("other"), Joined)
        bench.clock.off -= step
    bench.clock.off += step
    *joined, leading = await bench.looked(LEASE_SECONDS)
    assert all(isinstance(each, Joined) for each in joined)
    assert isinstance(leading, Leading)
    assert leading.token > token


async def test_a_dead_flight_that_nobody_knows_is_taken_over_after_a_lease(bench: Bench) -> None:
    """Who comes to a flight whose holder died long ago waits for a lease, and is told how long that still is."""
    await bench.lead()
    bench.clock.now += 1000
    *joined, leading = await bench.looked(LEASE_SECONDS)
    assert [each.expires_in for each in joined] == [5, 4, 3, 2, 1]
    assert isinstance(leading, Leading)


async def test_an_outage_of_the_records_is_no_silence(bench: Bench) -> None:
    """After a time in which nobody could look or beat, the holder has most of a lease to be heard of again."""
    token = await bench.lead()
    await bench.join_or_lead("other")
    bench.clock.now += 100
    assert isinstance(await bench.join_or_lead("other"), Joined)
    bench.clock.now += 1
    assert (await bench.beat(token)).verdict is HolderStatus.HELD
    assert isinstance(await bench.join_or_lead("other"), Joined)


@pytest.mark.parametrize("step", [900.0, -900.0])
async def test_waiters_and_lingers_do_not_go_by_the_servers_clock(bench: Bench, step: float) -> None:
    """A step neither makes a waiter that looks every second count as silent, nor ends or prolongs a linger."""
    token = await bench.lead()
    await bench.beat(token)
    await bench.join_or_lead("second")
    bench.clock.off += step
    assert not await bench.records.leave("k", "leader", at_once=True)
    assert (await bench.beat(token)).verdict is HolderStatus.HELD
    assert await bench.records.leave("k", "second")
    bench.clock.off -= step
    assert (await bench.beat(token)).verdict is HolderStatus.HELD
    for _ in range(round(LINGER) - 1):
        bench.clock.now += 1
        assert (await bench.beat(token)).verdict is HolderStatus.HELD
    bench.clock.off += step
    bench.clock.now += 1.01
    assert (await bench.beat(token)).verdict is HolderStatus.CANCELLED


async def test_a_token_is_no_earlier_than_what_its_leader_has_heard_of(bench: Bench) -> None:
    """After the server's clock was set back a flight that begins after an invalidation still has the later time."""
    bench.clock.off -= 900
    known = round((bench.clock() - 1) * 1e6)
    join_result = await bench.join_or_lead("leader", not_before=known)
    assert join_result.token == known
    again = await bench.join_or_lead("leader", given_up=known, not_before=known)
    assert again.token > known


# Abandoned and cancelled.


async def test_the_last_waiter_leaves_and_the_render_lingers(bench: Bench) -> None:
    """After the last one's leaving a render goes on for the linger, then its heartbeat says cancelled, ever again."""
    token = await bench.lead()
    await bench.join_or_lead("second")
    assert not await bench.records.leave("k", "leader")
    assert (await bench.beat(token)).verdict is HolderStatus.HELD
    assert await bench.records.leave("k", "second")
    assert (await bench.beat(token)).verdict is HolderStatus.HELD  # from here on
    for _ in range(10):
        bench.clock.now += LINGER / 10 - 0.001
        assert (await bench.beat(token)).verdict is HolderStatus.HELD
    bench.clock.now += 0.02
    assert (await bench.beat(token)).verdict is HolderStatus.CANCELLED
    assert (await bench.beat(token)).verdict is HolderStatus.CANCELLED
    assert await bench.state() is FlightState.CANCELLED
    assert await bench.lead("newcomer") > token
    assert (await bench.beat(token)).verdict is HolderStatus.LOST


async def test_leaving_at_once_cancels_at_the_next_heartbeat(bench: Bench) -> None:
    """A DELETE does not linger; and it leaves a render alone that others wait for."""
    token = await bench.lead()
    await bench.join_or_lead("second")
    assert not await bench.records.leave("k", "leader", at_once=True)
    assert (await bench.beat(token)).verdict is HolderStatus.HELD
    assert await bench.records.leave("k", "second", at_once=True)
    assert (await bench.beat(token)).verdict is HolderStatus.CANCELLED


async def test_leaving_at_once_ends_a_linger(bench: Bench) -> None:
    """At once is at once, also when the linger had begun, and a later leaving does not take it back."""
    token = await bench.lead()
    assert await bench.records.leave("k", "leader")
    assert await bench.records.leave("k", "job", at_once=True)
    assert await bench.records.leave("k", "leader")
    assert (await bench.beat(token)).verdict is HolderStatus.CANCELLED


async def test_somebody_comes_back_in_time(bench: Bench) -> None:
    """One look within the linger makes the render wanted again, even after an at-once leaving not heard of yet."""
    token = await bench.lead()
    for at_once in (False, True):
        assert await bench.records.leave("k", "leader", at_once=at_once)
        assert isinstance(await bench.join_or_lead("leader"), Joined)
        bench.clock.now += LINGER + 1
        assert (await bench.beat(token)).verdict is HolderStatus.HELD


async def test_a_dead_router_keeps_its_render(bench: Bench) -> None:
    """Waiters that fall silent have not left: nothing is abandoned for their sake."""
    token = await bench.lead()
    for _ in range(20):
        bench.clock.now += LEASE_SECONDS - 1
        assert (await bench.beat(token)).verdict is HolderStatus.HELD


async def test_a_silent_waiter_does_not_count_when_another_leaves(bench: Bench) -> None:
    """Whoever was not heard of for WAITER_SECONDS does not keep a render that everybody else has left."""
    token = await bench.lead("silent")
    for _ in range(round(WAITER_SECONDS)):
        await bench.beat(token)
        await bench.join_or_lead("second")
        assert not await bench.records.leave("k", "second")
        await bench.join_or_lead("second")
        bench.clock.now += 1
    await bench.beat(token)
    assert await bench.records.leave("k", "second")


async def test_leaving_an_ended_flight_changes_nothing(bench: Bench) -> None:
    """Nobody is cancelled where nobody works."""
    assert not await bench.records.leave("k", "nobody")
    token = await bench.lead()
    assert await bench.records.fail("k", token, "why")
    assert not await bench.records.leave("k", "leader", at_once=True)
    assert await bench.records.look("k") == FlightStatus(token, FlightState.FAILED, detail="why")


# Landed and failed.


async def test_landed_is_the_value_and_how_it_came(bench: Bench) -> None:
    """A landed flight is the bytes and the record's word to all who look; a late heartbeat changes nothing."""
    token = await bench.lead()
    await bench.beat(token, 4)
    frame = bytes(range(256))
    assert await bench.records.complete("k", token, frame, '{"outcome": "rendered"}')
    found = Found(frame, FlightStatus(token, FlightState.LANDED, 4, 4, "hit", '{"outcome": "rendered"}'))
    assert (await bench.beat(token, 2)).verdict is HolderStatus.HELD
    assert [await bench.join_or_lead("leader"), await bench.join_or_lead("new")] == [found, found]


async def test_landed_elsewhere_is_told_once_to_each_waiter(bench: Bench) -> None:
    """Without a value in L2, those who waited hear that it landed; those who come later lead."""
    token = await bench.lead()
    await bench.join_or_lead("second")
    assert await bench.records.complete("k", token, None, "in l3")
    ended = Ended(FlightStatus(token, FlightState.LANDED, detail="in l3"))
    assert [await bench.join_or_lead("leader"), await bench.join_or_lead("second")] == [ended, ended]
    assert isinstance(await bench.join_or_lead("second"), Leading)


async def test_a_failure_is_told_once_to_each_waiter(bench: Bench) -> None:
    """Who waited hears of the failure; who asks again, or anew, gets a new try."""
    token = await bench.lead()
    await bench.join_or_lead("second")
    assert await bench.records.fail("k", token, "why")
    ended = Ended(FlightStatus(token, FlightState.FAILED, detail="why"))
    assert [await bench.join_or_lead("leader"), await bench.join_or_lead("second")] == [ended, ended]
    new = await bench.lead("leader")
    assert new > token
    assert isinstance(await bench.join_or_lead("third"), Joined)


async def test_who_would_not_lead_is_idle(bench: Bench) -> None:
    """With lead=False a waiter counts and leaves the lead to others; it is never told of a flight before its time."""
    assert await bench.join_or_lead("shy", lead=False) == Idle()
    assert await bench.state() is None
    token = await bench.lead()
    assert not await bench.records.leave("k", "leader")
    for _ in range(round(LEASE_SECONDS)):
        assert isinstance(await bench.join_or_lead("leader"), Joined)
        bench.clock.now += 1
    assert await bench.join_or_lead("leader", lead=False) == Idle()
    assert await bench.state() is FlightState.WAITING
    assert await bench.records.fail("k", token, "why")
    assert await bench.join_or_lead("late", lead=False) == Idle()
    assert await bench.join_or_lead("late", lead=False) == Idle()
    assert await bench.join_or_lead("leader", lead=False) == Ended(
        FlightStatus(token, FlightState.FAILED, detail="why")
    )


async def test_a_failure_is_not_told_to_newcomers(bench: Bench) -> None:
    """Failures are not stored: the first who asks afterwards leads."""
    token = await bench.lead()
    assert await bench.records.fail("k", token, "why")
    assert isinstance(await bench.join_or_lead("newcomer"), Leading)


async def test_a_value_that_is_gone_is_made_again(bench: Bench) -> None:
    """When the value of a landed flight was deleted, the next one leads under a larger token."""
    token = await bench.lead()
    assert await bench.records.complete("k", token, b"video", "")
    assert isinstance(await bench.join_or_lead("leader"), Found)
    bench.forget_value("k")
    assert await bench.lead("next") > token


# What only a server can do.


@pytest.fixture
async def flights(valkey_server: ValkeyServer) -> AsyncIterator[RedisFlightRecords]:
    """Records on the server's own clock."""
    valkey_server.flush()
    tier = RedisTier(valkey_server.url, **PATIENT)
    made = RedisFlightRecords(tier, secret=b"s", linger_seconds=LINGER)
    yield made
    await made.aclose()
    await tier.close()


async def heard(ear: asyncio.Queue[FlightStatus], state: FlightState) -> FlightStatus:
    """The next news of that state."""
    async with asyncio.timeout(30):
        while (news := await ear.get()).state is not state:
            pass
        return news


async def lead(flights: FlightRecords, key: str = "k") -> int:
    join_result = await flights.join_or_lead(key, "leader", CALM)
    assert isinstance(join_result, Leading)
    return join_result.token


async def test_time_is_the_servers_own(flights: RedisFlightRecords) -> None:
    """Without a clock of the test's, tokens are microseconds of the server's time and the lease is really seconds."""
    before = time.time()
    token = await lead(flights)
    assert before - 1 < token / 1e6 < time.time() + 1
    assert isinstance(await flights.join_or_lead("k", "second", CALM), Joined)


async def test_messages_wake(flights: RedisFlightRecords) -> None:
    """Who watches hears states, steps and the end, once each, until it stops watching."""
    token = await lead(flights)
    ear: asyncio.Queue[FlightStatus] = asyncio.Queue()
    stop = flights.watch("k", ear.put_nowait)
    deaf: asyncio.Queue[FlightStatus] = asyncio.Queue()
    flights.watch("other", deaf.put_nowait)
    await _until_subscribed(flights, "k")
    for step in (0, 0, 1):
        await flights.beat("k", token, FlightStatus(token, FlightState.RENDERING, step, 2, "miss"))
    await flights.complete("k", token, b"video", '{"a": "\u00e9/"}')
    assert [
        await heard(ear, FlightState.RENDERING),
        await heard(ear, FlightState.RENDERING),
        await heard(ear, FlightState.LANDED),
    ] == [
        FlightStatus(token, FlightState.RENDERING, 0, 2, "miss"),
        FlightStatus(token, FlightState.RENDERING, 1, 2, "miss"),
        FlightStatus(token, FlightState.LANDED, 1, 2, "miss", '{"a": "\u00e9/"}'),
    ]
    stop()
    token = (await _relead(flights)).token
    await flights.beat("k", token, FlightStatus(token, FlightState.RENDERING, 1, 2))
    await asyncio.sleep(0.05)
    assert ear.empty()
    assert deaf.empty()


async def _relead(flights: RedisFlightRecords) -> Leading:
    await flights._redis.client.flushdb()
    join_result = await flights.join_or_lead("k", "again", CALM)
    assert isinstance(join_result, Leading)
    return join_result


async def _until_subscribed(flights: RedisFlightRecords, key: str) -> None:
    channel = flights._names(key)[3]
    async with asyncio.timeout(30):
        # the server tells nobody
        while dict(await flights._redis.client.pubsub_numsub(channel))[channel.encode()] == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_one_look_is_one_round_trip(flights: RedisFlightRecords) -> None:
    """Each verb sends one command, whatever it finds."""
    token = await lead(flights)
    news = FlightStatus(token, FlightState.RENDERING)
    await flights.beat("k", token, news)
    await flights.complete("k", token, b"v", "")
    await flights.leave("k", "leader")
    before = (await flights._redis.client.info("commandstats"))["cmdstat_evalsha"]["calls"]
    for call in (
        flights.join_or_lead("k", "w", CALM),
        flights.join_or_lead("l", "w", CALM),
        flights.beat("k", token, news),
        flights.complete("k", token, b"v", ""),
        flights.leave("k", "w"),
    ):
        await call
    after = await flights._redis.client.info("commandstats")
    assert after["cmdstat_evalsha"]["calls"] - before == 5


async def test_nothing_stored_names_the_key(flights: RedisFlightRecords) -> None:
    """Names of values, records, waiters and channels are HMACs: storage tells nobody which key it is about."""
    key = "0123456789abcdef" * 4
    await lead(flights, key)
    names = await flights._redis.client.keys("*")
    assert len(names) == 2
    assert not any(key.encode() in name for name in names)


async def test_a_large_video_lands(flights: RedisFlightRecords) -> None:
    """64 MiB go through the scripts whole, in and out."""
    token = await lead(flights)
    frame = bytes(64 << 20)
    assert len(frame) == flights.max_value_bytes
    assert await flights.complete("k", token, frame, "")
    found = await flights.join_or_lead("k", "leader", CALM)
    assert isinstance(found, Found)
    assert len(found.frame) == len(frame)
    assert found.frame == frame


async def test_a_dead_server_is_a_tier_error_and_a_new_one_works(
    start_valkey: Callable[..., ValkeyServer],
) -> None:
    """While Valkey is down calls raise TierError; after its restart records and subscriptions work again."""
    server = start_valkey()
    tier = RedisTier(server.url)
    flights = RedisFlightRecords(tier, secret=b"s", linger_seconds=LINGER)
    ear: asyncio.Queue[FlightStatus] = asyncio.Queue()
    flights.watch("k", ear.put_nowait)
    old = await lead(flights)
    await _until_subscribed(flights, "k")
    server.kill()
    for call in (
        flights.join_or_lead("k", "w", CALM),
        flights.beat("k", old, FlightStatus(old, FlightState.RENDERING)),
    ):
        with pytest.raises(TierError):
            await call
    server.restart()
    token = await lead(flights)
    assert token > old
    async with asyncio.timeout(30):
        step = 0
        while ear.empty():
            step += 1
            await flights.beat("k", token, FlightStatus(token, FlightState.RENDERING, step, 99))
            await asyncio.sleep(0.05)
    assert (await heard(ear, FlightState.RENDERING)).token == token
    await flights.aclose()
    await tier.close()


async def test_flights_survive_a_persistent_server(start_valkey: Callable[..., ValkeyServer]) -> None:
    """With the append-only file a SIGKILL of Valkey loses no flight: its holder goes on and its waiters join."""
    server = start_valkey(persistent=True)
    tier = RedisTier(server.url, **PATIENT)
    flights = RedisFlightRecords(tier, secret=b"s", linger_seconds=LINGER)
    token = await lead(flights)
    server.kill()
    server.restart()
    with suppress(TierError):  # the pool's connection is a dead one
        await flights.look("k")
    assert (
        await flights.beat("k", token, FlightStatus(token, FlightState.RENDERING, 1, 2))
    ).verdict is HolderStatus.HELD
    assert await flights.join_or_lead("k", "w", CALM) == Joined(FlightStatus(token, FlightState.RENDERING, 1, 2))
    await flights.aclose()
    await tier.close()


async def test_a_thousand_race_for_one_lease(flights: RedisFlightRecords) -> None:
    """Of many who ask at once exactly one leads."""
    join_result = await asyncio.gather(*(flights.join_or_lead("k", f"w{number}", CALM) for number in range(1000)))
    assert sum(isinstance(each, Leading) for each in join_result) == 1
    assert sum(isinstance(each, Joined) for each in join_result) == 999


def test_a_waiter_beats_often_enough() -> None:
    """A waiter misses several polls before it stops to count, and a lease outlives a lost heartbeat or two."""
    assert WAITER_SECONDS >= 3 * POLL_SECONDS
    assert LEASE_SECONDS >= 3 * POLL_SECONDS
