"""The heartbeat of a render: at each step, in between, deaf to an absent Redis, obedient to the record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest

from serve_app.core import Priority, Urgency
from serve_app.errors import TierError
from serve_app.flight import heartbeat as module
from serve_app.flight.heartbeat import Heartbeat
from serve_app.flight.record import Beat, FlightRecords, FlightState, FlightStatus, HolderStatus
from tests.serve_app.service.rig import until


class Records:
    """Notes heartbeats; answers with `answer`, raises it when it is an error."""

    def __init__(self) -> None:
        self.beats: list[FlightStatus] = []
        self.answer: Beat | TierError = Beat(HolderStatus.HELD)

    async def beat(self, _key: str, token: int, news: FlightStatus) -> Beat:
        await asyncio.sleep(0)
        assert token == news.token
        self.beats.append(news)
        if isinstance(self.answer, TierError):
            raise self.answer
        return self.answer


class Bench:
    """A heartbeat that runs, and what it said."""

    def __init__(self) -> None:
        self.records = Records()
        self.stopped = 0
        self.hurried: list[Urgency] = []
        self.heartbeat = Heartbeat(
            cast(FlightRecords, self.records), "key", 5, embedding="hit", stop=self.stop, hurry=self.hurried.append
        )
        self.task = asyncio.create_task(self.heartbeat.run())

    def stop(self) -> None:
        self.stopped += 1


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    made.task.cancel()
    await asyncio.gather(made.task, return_exceptions=True)


async def test_it_beats_at_once_and_at_every_step(bench: Bench) -> None:
    """The first heartbeat takes the flight over from the router; each step that is waited for is told."""
    await until(lambda: len(bench.records.beats) == 1)
    for step in (1, 2, 3):
        bench.heartbeat.step(step, 4)
        await until(lambda step=step: bench.records.beats[-1].step == step)
    assert bench.records.beats[0] == FlightStatus(5, FlightState.RENDERING, 0, 0, "hit")
    assert bench.records.beats[-1] == FlightStatus(5, FlightState.RENDERING, 3, 4, "hit")


async def test_it_beats_without_steps(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long step, a queue, a decode: the lease is extended all the same."""
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.01)
    bench.heartbeat.step(1, 4)
    await until(lambda: len(bench.records.beats) >= 5)
    assert not bench.stopped


@pytest.mark.parametrize("verdict", [HolderStatus.LOST, HolderStatus.CANCELLED])
async def test_a_lost_or_cancelled_flight_stops_the_render_once(bench: Bench, verdict: HolderStatus) -> None:
    """What the record says is done at the next step, and that is the last heartbeat."""
    await until(lambda: bool(bench.records.beats))
    bench.records.answer = Beat(verdict)
    bench.heartbeat.step(1, 4)
    await asyncio.wait_for(bench.task, 30)
    assert (bench.stopped, bench.records.beats[-1].step) == (1, 1)


async def test_redis_away_stops_nothing(bench: Bench) -> None:
    """Heartbeats that fail leave the render alone, and go on when Redis is back."""
    bench.records.answer = TierError("away")
    bench.heartbeat.step(1, 4)
    await until(lambda: len(bench.records.beats) >= 1)
    bench.records.answer = Beat(HolderStatus.HELD)
    bench.heartbeat.step(2, 4)
    await until(lambda: bench.records.beats[-1].step == 2)
    assert not bench.stopped


async def test_a_newer_token_is_taken_an_older_one_is_not(bench: Bench) -> None:
    """A lease renewed for this same render is kept alive under its new token; a straggler's old one changes nothing."""
    bench.heartbeat.take(9)
    bench.heartbeat.take(7)
    await until(lambda: bool(bench.records.beats) and bench.records.beats[-1].token == 9)
    assert bench.heartbeat.token == 9


async def test_lost_under_an_old_token_is_no_loss(bench: Bench) -> None:
    """The answer to a heartbeat under the old token does not end a render that has a newer one by then."""
    await until(lambda: bool(bench.records.beats))
    bench.records.answer = Beat(HolderStatus.LOST)
    bench.heartbeat.step(1, 4)
    bench.heartbeat.take(9)  # before the heartbeat of step 1 is answered
    seen = len(bench.records.beats)
    await asyncio.sleep(0)
    bench.records.answer = Beat(HolderStatus.HELD)
    await until(lambda: len(bench.records.beats) > seen)
    assert not bench.stopped


async def test_urgency_is_passed_on_when_it_changes(bench: Bench) -> None:
    """The engine hears of the most urgent waiter once, not at every heartbeat."""
    for priority in (Priority.BATCH, Priority.BATCH, Priority.INTERACTIVE):
        bench.records.answer = Beat(HolderStatus.HELD, Urgency(priority))
        seen = len(bench.records.beats)
        bench.heartbeat.step(seen, 9)
        await until(lambda seen=seen: len(bench.records.beats) > seen + 1 or bench.records.beats[-1].step == seen)
    await until(lambda: bench.hurried == [Urgency(Priority.BATCH), Urgency(Priority.INTERACTIVE)])
