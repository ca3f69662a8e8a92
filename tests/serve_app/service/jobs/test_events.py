"""A job's life as a reader hears it: on the router that follows it and on any other, from any event on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core import JobStatus
from serve_app.errors import ContentGone, NotFound, RenderFailed, TierError
from serve_app.flight.record import FlightState, FlightStatus, Hear
from serve_app.service.jobs import events as events_module
from serve_app.service.jobs.events import JobEvent, Position, with_status
from serve_app.service.jobs.job import Job
from serve_app.service.jobs.store import MemoryJobs
from serve_app.service.service import VideoService
from tests.serve_app.service.rig import Rig, a_job, ask, ended, reached, until


class Airwaves:
    """What renders tell the cluster: the newest word is on record, messages reach whoever listens unless `lost`."""

    def __init__(self) -> None:
        self.records: dict[str, FlightStatus] = {}
        self.hearers: dict[str, list[Hear]] = {}
        self.lost = self.away = False

    async def aclose(self) -> None:
        """It holds nothing."""

    async def look(self, key: str) -> FlightStatus | None:
        if self.away:
            raise TierError("away")
        return self.records.get(key)

    def watch(self, key: str, hear: Hear) -> Callable[[], None]:
        if self.away:
            raise TierError("away")
        self.hearers.setdefault(key, []).append(hear)
        return lambda: self.hearers[key].remove(hear)

    def tell(self, key: str, state: FlightState, step: int = 0, total: int = 0) -> None:
        news = self.records[key] = FlightStatus(1, state, step, total, "hit")
        for hear in [] if self.lost else list(self.hearers.get(key, ())):
            hear(news)


class Reader:
    """Collects events as they come, as ids; `pause` makes it slow."""

    def __init__(self, told: AsyncIterator[JobEvent | None], pause: float = 0.0) -> None:
        self.events: list[JobEvent] = []
        self.idle = 0
        self._pause = pause
        self.task = asyncio.create_task(self._read(told))

    @property
    def ids(self) -> list[str]:
        return [str(event.position) for event in self.events]

    async def _read(self, told: Any) -> None:
        async with aclosing(told):
            async for event in told:
                if event is None:
                    self.idle += 1
                else:
                    self.events.append(event)
                await asyncio.sleep(self._pause)

    async def heard(self, position: str) -> None:
        await until(lambda: position in self.ids)


async def read(service: VideoService, job: Job, last: str | None = None, pause: float = 0.0) -> Reader:
    told = await service.jobs.events(job.id, last)
    assert told is not None
    return Reader(told, pause)


async def stepped(rig: Rig, reader: Reader, first: int, last: int) -> None:
    for step in range(first, last + 1):
        rig.renderer.allow(1)
        await reader.heard(f"1.{step}")


async def test_every_step_is_told(rig: Rig) -> None:
    """Queued, started, each denoising step with what is left, completed; then it ends."""
    rig.renderer.hold()
    service = rig.service()
    reader = await read(service, await service.jobs.submit(ask()))
    await reader.heard("1.0")  # else the first step may overtake the start
    await stepped(rig, reader, 1, 4)
    rig.renderer.allow()
    await reader.task
    assert reader.ids == ["0.0", "1.0", "1.1", "1.2", "1.3", "1.4", "2.0"]
    assert [event.name for event in reader.events] == ["queued"] + ["in_progress"] * 5 + ["completed"]
    assert [(event.job.step, event.job.total_steps) for event in reader.events[2:5]] == [(1, 4), (2, 4), (3, 4)]
    assert [event.job.progress for event in reader.events] == [0, 0, 25, 50, 75, 99, 100]
    assert [event.eta_seconds is not None for event in reader.events] == [False] * 3 + [True] * 3 + [False]
    assert reader.events[-1].job == await service.jobs.get(reader.events[-1].job.id)
    assert service.jobs._tracker._watchers == {}


async def test_a_failure_and_a_deletion_are_told(rig: Rig) -> None:
    """A render that fails ends the story with why; a job that is deleted ends it too."""
    rig.renderer.hold()
    service = rig.service()
    failing, deleted = [await service.jobs.submit(ask(seed=seed)) for seed in (1, 2)]
    readers = [await read(service, job) for job in (failing, deleted)]
    for reader in readers:
        await reader.heard("1.0")
    await service.jobs.delete(deleted.id)
    rig.renderer.failure = RenderFailed("no kernel")
    rig.renderer.allow()
    await asyncio.gather(*(reader.task for reader in readers))
    assert [(reader.ids[-1], reader.events[-1].name) for reader in readers] == [("3.0", "failed"), ("4.0", "deleted")]
    assert readers[0].events[-1].job.error_message == "no kernel"


async def test_going_on_after_an_event(rig: Rig) -> None:
    """Who comes back with the last id hears only what is new, also on another router; after the end nothing."""
    rig.renderer.hold()
    jobs = MemoryJobs(clock=rig.clock)
    one, two = rig.service(jobs=jobs), rig.service(jobs=jobs)
    job = await one.jobs.submit(ask())
    first = await read(one, job)
    await stepped(rig, first, 1, 2)
    first.task.cancel()
    second = await read(one, job, "1.2")
    await stepped(rig, second, 3, 3)
    rig.renderer.allow()
    await second.task
    assert second.ids == ["1.3", "1.4", "2.0"]
    for service in (one, two):
        assert await service.jobs.events(job.id, "2.0") is None
        assert (await read(service, job)).events == []
        last = await read(service, job, "1.4")
        await last.task
        assert last.ids == ["2.0"]


async def test_ids_that_are_none(rig: Rig) -> None:
    """A Last-Event-ID that no event of this job had is passed over: the story is told from the start."""
    rig.renderer.hold()
    service = rig.service()
    job = await reached(service, await service.jobs.submit(ask()), JobStatus.IN_PROGRESS)
    for nonsense in ("", "x", "1", "9.9", "-1.0", "1.1.1", "2.0", "4.0", "\u0661.1"):
        reader = await read(service, job, nonsense)
        await reader.heard("1.0")
        reader.task.cancel()
    with pytest.raises(NotFound):
        await service.jobs.events("nobody", "2.0")


async def test_unknown_deleted_and_gone_before_it_begins(rig: Rig) -> None:
    """What cannot be told is refused before the first event; who heard of a deletion is not told again."""
    service = rig.service()
    job, other = [await ended(service, await service.jobs.submit(ask(seed=seed))) for seed in (1, 2)]
    await service.jobs.delete(job.id)
    await service.invalidate(other.keys.video)
    for job_id, kind in (("nobody", NotFound), (job.id, NotFound), (other.id, ContentGone)):
        with pytest.raises(kind):
            await service.jobs.events(job_id)
    assert await service.jobs.events(job.id, "4.0") is None
    assert await service.jobs.events(other.id, "2.0") is None


async def test_a_slow_reader_hears_the_newest(rig: Rig) -> None:
    """Steps that pass while the reader is busy are not queued up for it; ids still only grow, and the end is told."""
    rig.renderer.total = 200
    service = rig.service()
    reader = await read(service, await service.jobs.submit(ask()), pause=0.05)
    await reader.task
    assert reader.ids[-1] == "2.0"
    assert len(reader.events) < 10


@pytest.fixture
async def abroad(rig: Rig) -> tuple[VideoService, VideoService, Airwaves]:
    """A router that follows jobs, another one over the same records, and what the second hears of renders."""
    jobs, waves = MemoryJobs(clock=rig.clock), Airwaves()
    return rig.service(jobs=jobs), rig.service(jobs=jobs, flights=waves), waves  # type: ignore[arg-type]


async def test_another_router_tells_it_from_messages(
    rig: Rig, abroad: tuple[VideoService, VideoService, Airwaves], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the job is not followed every message is an event at once; the record tells the end soon after it."""
    monkeypatch.setattr(events_module, "POLL_SECONDS", 30.0)
    one, two, waves = abroad
    rig.renderer.hold()
    job = await one.jobs.submit(ask())
    key = job.keys.video
    reader = await read(two, job)
    await reader.heard("0.0")
    for step in range(5):
        waves.tell(key, FlightState.RENDERING, step, 4)
        await reader.heard(f"1.{step}")
    rig.renderer.allow()
    await ended(one, job)
    waves.tell(key, FlightState.LANDED)
    await reader.task
    assert reader.ids == ["0.0", "1.0", "1.1", "1.2", "1.3", "1.4", "2.0"]
    assert reader.events[-2].job.embedding == "hit"
    assert waves.hearers[key] == []


async def test_another_router_without_messages(
    rig: Rig, abroad: tuple[VideoService, VideoService, Airwaves], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When every message is lost, the records are read often enough; when they cannot be read, it waits."""
    monkeypatch.setattr(events_module, "POLL_SECONDS", 0.01)
    one, two, waves = abroad
    waves.lost = True
    rig.renderer.hold()
    job = await one.jobs.submit(ask())
    reader = await read(two, job)
    for step in (1, 3):
        waves.tell(job.keys.video, FlightState.RENDERING, step, 4)
        await reader.heard(f"1.{step}")
    waves.away = True
    await asyncio.sleep(0.05)
    rig.renderer.allow()
    await reader.task
    assert (reader.ids[-2:], len(set(reader.ids))) == (["1.3", "2.0"], len(reader.ids))


async def test_a_deletion_is_told_in_the_middle_of_messages(
    rig: Rig, abroad: tuple[VideoService, VideoService, Airwaves], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream of steps (somebody else wants the video) does not keep the reader from hearing of the deletion."""
    monkeypatch.setattr(events_module, "POLL_SECONDS", 0.05)
    one, two, waves = abroad
    rig.renderer.hold()
    job = await one.jobs.submit(ask())
    reader = await read(two, job)
    await reader.heard("0.0")
    await one.jobs.delete(job.id)
    for step in range(100):
        waves.tell(job.keys.video, FlightState.RENDERING, step, 100)
        if reader.task.done():
            break
        await asyncio.sleep(0.005)
    await reader.task
    assert reader.events[-1].name == "deleted"


async def test_a_look_at_a_job_elsewhere_shows_fresh_progress(
    rig: Rig, abroad: tuple[VideoService, VideoService, Airwaves]
) -> None:
    """GET on a router that does not follow the job shows the flight's step; without flight records the job's record."""
    one, two, waves = abroad
    rig.renderer.hold()
    job = await one.jobs.submit(ask())
    waves.tell(job.keys.video, FlightState.RENDERING, 3, 4)
    assert [(await service.jobs.get(job.id)).progress for service in (one, two)] == [0, 75]
    assert (await two.jobs.get(job.id)).status is JobStatus.IN_PROGRESS
    waves.away = True
    assert (await two.jobs.get(job.id)).progress == 0


async def test_a_render_that_begins_again_shows_the_furthest(
    rig: Rig, abroad: tuple[VideoService, VideoService, Airwaves]
) -> None:
    """After a replica's death steps are counted from nought; the reader hears nothing until they are new."""
    one, two, waves = abroad
    rig.renderer.hold()
    job = await one.jobs.submit(ask())
    key = job.keys.video
    reader = await read(two, job)
    await reader.heard("0.0")
    for step in (1, 2, 0, 1, 2, 3):
        waves.tell(key, FlightState.RENDERING, step, 4)
        await asyncio.sleep(0.01)
    rig.renderer.allow()
    await ended(one, job)
    waves.tell(key, FlightState.LANDED)
    await reader.task
    assert reader.ids == ["0.0", "1.1", "1.2", "1.3", "2.0"]
    progress = [event.job.progress for event in reader.events]
    assert progress == sorted(progress)


async def test_silence_is_told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing happens the reader is given a sign of life now and then, and no event twice."""
    monkeypatch.setattr(events_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(events_module, "IDLE_SECONDS", 0.03)
    rig.renderer.hold()
    service = rig.service()
    reader = await read(service, await service.jobs.submit(ask()))
    await until(lambda: reader.idle > 3)
    assert reader.ids == ["0.0", "1.0"]
    rig.renderer.allow()
    await reader.task


async def test_a_record_that_is_lost_for_good(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader of a job that no store has any more is let go without an end, so that it comes back and hears 404."""
    monkeypatch.setattr(events_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(events_module, "LOST_SECONDS", 0.5)
    jobs = MemoryJobs(clock=rig.clock)
    service = rig.service(jobs=jobs)
    job = a_job(created_at=rig.clock.now, expires_at=rig.clock.now + 1000)
    await jobs.add(job)
    reader = await read(service, job)
    await reader.heard("0.0")
    jobs._drop(job.id)
    await asyncio.sleep(0.03)
    await jobs.add(job)  # its follower wrote it anew
    await asyncio.sleep(0.6)
    assert not reader.task.done()
    jobs._drop(job.id)
    await reader.task
    assert reader.ids == ["0.0"]


async def test_a_reader_that_leaves_leaves_nothing(
    rig: Rig, abroad: tuple[VideoService, VideoService, Airwaves]
) -> None:
    """Whoever stops reading is listened for no longer, on either router, and the job goes on."""
    one, two, waves = abroad
    rig.renderer.hold()
    job = await one.jobs.submit(ask())
    readers = [await read(service, job) for service in (one, two)]
    for reader in readers:
        await reader.heard("0.0")
        reader.task.cancel()
        await asyncio.gather(reader.task, return_exceptions=True)
    assert (one.jobs._tracker._watchers, two.jobs._tracker._watchers, waves.hearers[job.keys.video]) == ({}, {}, [])
    rig.renderer.allow()
    assert (await ended(one, job)).status == "completed"


POSITIONS = st.builds(Position, st.integers(0, 4), st.integers(0, 10**9 - 1))


@given(POSITIONS)
def test_a_position_reads_back(position: Position) -> None:
    """An event's id, sent back, is the position it had."""
    assert Position.read(str(position)) == position


NEWS = st.builds(FlightStatus, st.just(1), st.sampled_from(FlightState), st.integers(0, 8), st.sampled_from([0, 8]))


@given(st.lists(NEWS, max_size=10))
def test_news_only_move_a_job_forward(news: list[FlightStatus]) -> None:
    """Whatever a flight tells in whatever order, step and percent grow, and the end is left to the job's record."""
    job = a_job()
    for each in news:
        after = with_status(job, each)
        assert (after.step or 0, after.progress) >= (job.step or 0, job.progress)
        assert after.status in (JobStatus.QUEUED, JobStatus.IN_PROGRESS)
        job = after
    done = a_job().failed("no", "no", 1.0)
    assert all(with_status(done, each) is done for each in news)
