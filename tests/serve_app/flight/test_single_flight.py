"""Single flight: one computation per key, and a caller that leaves strands no other."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from collections.abc import Awaitable, Callable

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from serve_app.errors import RenderCancelled
from serve_app.flight.single_flight import Flight, SingleFlight

Work = Callable[[Flight[bytes, str]], Awaitable[bytes]]
LONG = 3600.0
request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="none")


class Render:
    """Work that tells when it started, counts its runs and ends when `go` is set."""

    def __init__(self, result: bytes | Exception = b"mp4") -> None:
        self.runs = 0
        self.cancelled = False
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self._result = result

    async def __call__(self, flight: Flight[bytes, str]) -> bytes:
        self.runs += 1
        self.started.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


async def ticks(count: int = 5) -> None:
    """Let everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def leave(waiter: asyncio.Task[bytes]) -> None:
    """Cancel one waiter, as a client's disconnect does."""
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter


def join_or_lead(flights: SingleFlight[bytes, str], work: Work, key: str = "k") -> asyncio.Task[bytes]:
    """Join or lead, and wait in a task of its own, as one request does."""
    flight, _ = flights.join_or_lead(key, work)
    return asyncio.create_task(flight.wait())


async def test_many_callers_share_one_flight() -> None:
    """A hundred callers of one key cause one run and all get its result; the first one leads."""
    flights: SingleFlight[bytes, str] = SingleFlight(LONG)
    render = Render()
    joined = [flights.join_or_lead("k", render) for _ in range(100)]
    assert [leads for _, leads in joined] == [True, *[False] * 99]
    waiters = [asyncio.create_task(flight.wait()) for flight, _ in joined]
    await render.started.wait()
    assert len(flights) == 1
    assert flights.find("k") is joined[0][0]
    render.go.set()
    assert await asyncio.gather(*waiters) == [b"mp4"] * 100
    assert render.runs == 1


async def test_keys_have_flights_of_their_own() -> None:
    """Different keys are different flights."""
    flights: SingleFlight[bytes, str] = SingleFlight(LONG)
    one, other = Render(b"1"), Render(b"2")
    waiters = [join_or_lead(flights, one, "a"), join_or_lead(flights, other, "b")]
    one.go.set()
    other.go.set()
    assert await asyncio.gather(*waiters) == [b"1", b"2"]


async def test_landed_flight_is_forgotten() -> None:
    """After the end the next caller leads a new run: flights are no cache."""
    flights: SingleFlight[bytes, str] = SingleFlight(LONG)
    render = Render()
    render.go.set()
    await join_or_lead(flights, render)
    assert len(flights) == 0
    assert flights.find("k") is None
    await join_or_lead(flights, render)
    assert render.runs == 2


async def test_leader_leaving_does_not_hurt_followers() -> None:
    """The leader's request is cancelled; the follower still gets the one result."""
    flights: SingleFlight[bytes, str] = SingleFlight(0.0)
    render = Render()
    leader, follower = join_or_lead(flights, render), join_or_lead(flights, render)
    await render.started.wait()
    await leave(leader)
    await asyncio.sleep(0.01)
    render.go.set()
    assert await follower == b"mp4"
    assert (render.runs, render.cancelled) == (1, False)


async def test_leader_leaving_before_the_first_tick() -> None:
    """A leader cancelled before anything ran leaves a flight that others can still use."""
    flights: SingleFlight[bytes, str] = SingleFlight(LONG)
    render = Render()
    leader = join_or_lead(flights, render)
    await leave(leader)
    follower = join_or_lead(flights, render)
    render.go.set()
    assert await follower == b"mp4"
    assert render.runs == 1


async def test_last_waiter_leaving_cancels_after_the_linger() -> None:
    """A render nobody waits for goes on for the linger, no longer, and is forgotten."""
    flights: SingleFlight[bytes, str] = SingleFlight(0.05)
    render = Render()
    waiter = join_or_lead(flights, render)
    await render.started.wait()
    await leave(waiter)
    flight = flights.find("k")
    assert flight is not None
    assert not flight.task.cancelling()
    with pytest.raises(asyncio.CancelledError):
        await flight.task
    assert render.cancelled
    assert flight.abandoned
    await ticks()
    assert len(flights) == 0


async def test_coming_back_in_time_keeps_it_alive() -> None:
    """Somebody who boards during the linger joins the run, and the old timer does not strike."""
    flights: SingleFlight[bytes, str] = SingleFlight(0.2)
    render = Render()
    waiter = join_or_lead(flights, render)
    await render.started.wait()
    await leave(waiter)
    second = join_or_lead(flights, render)
    await asyncio.sleep(0.3)
    render.go.set()
    assert await second == b"mp4"
    assert (render.runs, render.cancelled) == (1, False)


async def test_a_render_that_ends_during_the_linger_counts() -> None:
    """Work that finishes with nobody waiting finishes normally: its result was stored by the work itself."""
    flights: SingleFlight[bytes, str] = SingleFlight(LONG)
    render = Render()
    waiter = join_or_lead(flights, render)
    await render.started.wait()
    await leave(waiter)
    flight = flights.find("k")
    assert flight is not None
    render.go.set()
    assert await flight.task == b"mp4"
    assert not render.cancelled


async def test_release_at_once_cancels_only_when_it_is_the_last() -> None:
    """An explicit delete ends the render now, unless others wait for it."""
    flights: SingleFlight[bytes, str] = SingleFlight(LONG)
    render = Render()
    flight, _ = flights.join_or_lead("k", render)
    flight.hold()
    other = asyncio.create_task(flight.wait())
    await render.started.wait()
    flight.release(at_once=True)
    await ticks()
    assert not render.cancelled
    flight.hold()
    await leave(other)
    flight.release(at_once=True)
    await ticks()
    assert render.cancelled
    assert len(flights) == 0


async def test_boarding_a_cancelled_flight_starts_a_new_one() -> None:
    """Between cancellation and end a caller gets a new run, and the end of the old one does not remove it."""
    flights: SingleFlight[bytes, str] = SingleFlight(LONG)
    slow_to_die = asyncio.Event()

    async def stubborn(flight: Flight[bytes, str]) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            await slow_to_die.wait()
        raise AssertionError("unreachable")

    old, _ = flights.join_or_lead("k", stubborn)
    await ticks()
    old.hold()
    old.release(at_once=True)
    await ticks()
    assert not old.task.done()
    render = Render()
    new, leads = flights.join_or_lead("k", render)
    assert leads
    assert new is not old
    slow_to_die.set()
    await asyncio.wait([old.task])
    await ticks()
    assert flights.find("k") is new
    render.go.set()
    assert await new.wait() == b"mp4"


async def test_failure_reaches_every_waiter_and_is_not_kept() -> None:
    """Each waiter sees the exception; the next one to ask starts anew and succeeds."""
    flights: SingleFlight[bytes, str] = SingleFlight(LONG)
    failing = Render(ValueError("out of memory"))
    waiters = [join_or_lead(flights, failing) for _ in range(3)]
    failing.go.set()
    seen = await asyncio.gather(*waiters, return_exceptions=True)
    assert [str(error) for error in seen] == ["out of memory"] * 3
    assert failing.runs == 1
    assert len(flights) == 0
    working = Render()
    working.go.set()
    assert await join_or_lead(flights, working) == b"mp4"


async def test_failure_nobody_waits_for_is_not_reported_as_lost() -> None:
    """A flight that fails after its waiters left does not end in the loop's exception handler."""
    lost: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
    flights: SingleFlight[bytes, str] = SingleFlight(LONG)
    failing = Render(ValueError("boom"))
    waiter = join_or_lead(flights, failing)
    await failing.started.wait()
    await leave(waiter)
    failing.go.set()
    await ticks()
    assert len(flights) == 0
    gc.collect()
    await ticks()
    assert lost == []


async def test_a_cancelled_flight_is_an_error_to_who_waits() -> None:
    """When the work itself is cancelled, a waiter is told so; it is not itself cancelled."""
    flights: SingleFlight[bytes, str] = SingleFlight(LONG)
    render = Render()
    waiter = join_or_lead(flights, render)
    await render.started.wait()
    flight = flights.find("k")
    assert flight is not None
    flight.task.cancel()
    with pytest.raises(RenderCancelled):
        await waiter
    assert not flight.abandoned


async def test_the_waiters_own_cancellation_wins() -> None:
    """Waiter and work cancelled in one tick, as in a shutdown: the waiter is cancelled, so timeouts and groups work."""
    flights: SingleFlight[bytes, str] = SingleFlight(LONG)
    render = Render()
    waiter = join_or_lead(flights, render)
    await render.started.wait()
    flight = flights.find("k")
    assert flight is not None
    flight.task.cancel()
    await leave(waiter)
    assert flight.task.cancelled()


async def test_result_does_not_count_as_waiting() -> None:
    """`result` hears the outcome without keeping the flight alive."""
    flights: SingleFlight[bytes, str] = SingleFlight(0.0)
    render = Render()
    waiter = join_or_lead(flights, render)
    flight = flights.find("k")
    assert flight is not None
    listener = asyncio.create_task(flight.result())
    await render.started.wait()
    await leave(waiter)
    with pytest.raises(RenderCancelled):
        await listener
    assert flight.abandoned


async def test_news_are_replayed_in_order_to_late_watchers() -> None:
    """Who joins in the middle hears what was told before, then what comes, each once."""
    flights: SingleFlight[bytes, str] = SingleFlight(LONG)
    middle, go = asyncio.Event(), asyncio.Event()

    async def work(flight: Flight[bytes, str]) -> bytes:
        flight.publish("started")
        flight.publish("step 1")
        middle.set()
        await go.wait()
        flight.publish("step 2")
        return b"mp4"

    flight, _ = flights.join_or_lead("k", work)
    early: list[str] = []
    late: list[str] = []
    flight.watch(early.append)
    await middle.wait()
    flight.watch(late.append)
    assert late == ["started", "step 1"]
    go.set()
    await flight.wait()
    assert early == late == flight.events == ["started", "step 1", "step 2"]


async def test_the_requests_context_stays_behind() -> None:
    """Context variables of the request that leads do not leak into the work that serves everybody."""
    flights: SingleFlight[str, str] = SingleFlight(LONG)

    async def work(flight: Flight[str, str]) -> str:
        before = request_id.get()
        request_id.set("the work's own")
        return before

    request_id.set("leader")
    flight, _ = flights.join_or_lead("k", work)
    assert await flight.wait() == "none"
    assert request_id.get() == "leader"


async def test_the_trace_goes_along() -> None:
    """Spans made by the work are children of the leader's span: one request, one tree."""
    tracer = TracerProvider().get_tracer("test")
    flights: SingleFlight[int, str] = SingleFlight(LONG)

    async def work(flight: Flight[int, str]) -> int:
        return trace.get_current_span().get_span_context().span_id

    with tracer.start_as_current_span("request") as request:
        flight, _ = flights.join_or_lead("k", work)
    assert await flight.wait() == request.get_span_context().span_id


async def test_waiters_are_counted() -> None:
    """`waiters` tells how many wait now: `hold` and `wait` up, leaving and the end down."""
    flights: SingleFlight[bytes, str] = SingleFlight(LONG)
    render = Render()
    flight, _ = flights.join_or_lead("k", render)
    assert flight.waiters == 0
    waiters = [asyncio.create_task(flight.wait()) for _ in range(2)]
    await render.started.wait()
    assert flight.waiters == 2
    await leave(waiters[0])
    assert flight.waiters == 1
    render.go.set()
    await waiters[1]
    assert flight.waiters == 0


async def test_a_flight_that_never_started_has_no_task() -> None:
    """Asking for the task of a flight nobody started is a programming error that is named."""
    with pytest.raises(RuntimeError, match="k has not started"):
        _ = Flight[bytes, str]("k", LONG).task
