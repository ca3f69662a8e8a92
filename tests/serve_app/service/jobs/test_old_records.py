"""Records of the former layout, as its scripts left them, are read where they are and moved once, on the same server
or to another; and what a record looked like stays readable."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from serve_app.cache.key import image_key
from serve_app.cache.redis.redis import RedisTier
from serve_app.cache.storage_name import record_name
from serve_app.core import JobStatus
from serve_app.errors import NotFound
from serve_app.service.jobs.idempotency import Mark
from serve_app.service.jobs.job import Job, read_job
from serve_app.service.jobs.old_records import OldRecords
from serve_app.service.jobs.redis_input_images import RedisInputImages
from serve_app.service.jobs.redis_store import RedisJobs
from serve_app.service.jobs.store import ORPHAN_SECONDS
from serve_app.service.warmup.record import Held
from serve_app.service.warmup.redis_store import RedisWarmUps
from serve_app.telemetry import Telemetry
from tests.conftest import ValkeyServer
from tests.serve_app.service.jobs.test_store import done
from tests.serve_app.service.rig import NOW, SECRET, Clock, a_job
from tests.serve_app.service.warmup.test_store import HELD

FIXTURE = Path(__file__).parents[3] / "fixtures" / "store_formats" / "job_record_0.json"
PNG = b"\x89PNG" + bytes(1000)


@dataclass
class World:
    """An L2 as the former release left it, and where records are now."""

    l2: Redis
    jobs: RedisJobs
    images: RedisInputImages
    warm_ups: RedisWarmUps
    old: OldRecords
    clock: Clock

    async def leave(self, job: Job) -> None:
        """Write a record as the former `job_add.lua` did."""
        await self.l2.set(name("job", job.id), job.to_json(), px=3_600_000)
        await self.l2.zadd(name("job", "/index"), {job.id: job.created_at})
        if not job.status.is_final:
            await self.l2.zadd(name("job", "/unfinished"), {job.id: NOW * 1000})


def name(kind: str, part: str) -> str:
    return record_name(SECRET, kind, part)


@pytest.fixture(params=["one server", "two servers"])
async def world(request: pytest.FixtureRequest, start_valkey: Callable[..., ValkeyServer]) -> AsyncIterator[World]:
    first = start_valkey()
    tier = RedisTier(first.url, socket_timeout=20.0, deadline=60.0)
    apart = request.param == "two servers"
    other = RedisTier(start_valkey().url, socket_timeout=20.0, deadline=60.0) if apart else tier
    clock = Clock(NOW)
    jobs = RedisJobs(other, secret=SECRET, telemetry=Telemetry(), clock=clock)
    images = RedisInputImages(other, secret=SECRET, telemetry=Telemetry(), clock=clock)
    warm_ups = RedisWarmUps(other, secret=SECRET, telemetry=Telemetry(), clock=clock)
    old = jobs.old = OldRecords(tier, secret=SECRET, jobs=jobs, images=images, warm_ups=warm_ups if apart else None)
    assert isinstance(tier.client, Redis)
    yield World(tier.client, jobs, images, warm_ups, old, clock)
    await tier.client.aclose()
    await other.client.aclose()


async def test_all_that_was_accepted_is_moved(world: World) -> None:
    """Queued, finished and many: each is where it belongs, listed in order, an orphan if unfinished, and once."""
    jobs = [a_job(number) if number % 2 else done(a_job(number)) for number in range(250)]
    for job in jobs:
        await world.leave(job)
    await world.l2.zadd(name("job", "/index"), {"video_lost": NOW})
    assert await world.jobs.get("video_7") == jobs[7]
    assert await world.old.move() == 250
    assert [await world.jobs.get(job.id) for job in jobs] == jobs
    page = await world.jobs.page(after="video_199", limit=100, order="asc")
    assert [job.id for job in page.jobs] == [job.id for job in jobs[200:]]
    assert await world.l2.exists(name("job", "/index"), name("job", "/unfinished"), name("job", "video_7")) == 0
    assert await world.old.move() == 0
    world.clock.now += ORPHAN_SECONDS
    assert len(await world.jobs.claim(999)) == 125


async def test_moving_changes_nothing_that_is_newer(world: World) -> None:
    """What was deleted or ended since stays so, though the former record is still there."""
    for number in range(2):
        await world.leave(a_job(number))
    assert await world.jobs.update(done(a_job(0))) == done(a_job(0))
    await world.jobs.delete("video_1")
    await world.old.move()
    assert await world.jobs.get("video_0") == done(a_job(0))
    with pytest.raises(NotFound, match="deleted"):
        await world.jobs.get("video_1")
    assert await world.l2.exists(name("job", "/index")) == 0


async def test_former_tombstones_and_marks_still_count(world: World) -> None:
    """A job that was deleted before the update stays deleted, and a POST sent again after it meets its first job."""
    await world.l2.set(name("job", "video_0"), b"deleted", px=3_600_000)
    await world.l2.set(name("job", "/mark/" + "k" * 64), b"d" * 64 + b"video_1", px=60_000)
    await world.old.move()
    with pytest.raises(NotFound, match="deleted"):
        await world.jobs.get("video_0")
    assert await world.jobs.recall(Mark("k" * 64, "d" * 64, 60.0, True)) == "video_1"


async def test_images_and_warm_ups_move_too(world: World) -> None:
    """An unfinished job's image is there for whoever renders it, and a warm-up under way is taken over."""
    job = a_job()
    job = replace(job, spec=replace(job.spec, input_reference="ab" * 32))
    key = image_key(job.spec)
    await world.l2.set(record_name(SECRET, f"image:{key[0]}", key), PNG, px=3_600_000)
    await world.leave(job)
    record = {"runner": "one", "final": "", "state": HELD.warm_up.to_json(), "request": json.dumps(HELD.request)}
    await world.l2.hset(name("warm_up", HELD.warm_up.id), mapping=record)  # type: ignore[arg-type]
    await world.l2.pexpire(name("warm_up", HELD.warm_up.id), 3_600_000)
    await world.l2.zadd(name("warm_up", "/unfinished"), {HELD.warm_up.id: int(NOW * 1000)})
    await world.old.move()
    assert await world.images.find(key) == PNG
    world.clock.now += ORPHAN_SECONDS
    assert await world.warm_ups.claim(9, "two") == (Held(HELD.warm_up, dict(HELD.request)),)


async def test_what_has_no_room_waits(world: World) -> None:
    """Where unfinished jobs fill the store, former ones stay where they are and come when there is room."""
    for number in range(4):
        await world.leave(a_job(number))
    world.jobs._bounds = (3, 1 << 30)
    assert await world.old.move() == 3
    assert await world.jobs.get("video_3") == a_job(3)
    await world.jobs.update(done(a_job(0)))
    assert await world.old.move() == 1
    assert await world.l2.exists(name("job", "/index")) == 0


def test_a_record_of_an_earlier_release_is_read() -> None:
    """The record that 0.1 wrote of a job with everything in it."""
    job = read_job(FIXTURE.read_bytes())
    assert job is not None
    assert job.status is JobStatus.QUEUED
    assert json.loads(job.to_json()).items() >= json.loads(FIXTURE.read_bytes()).items()
