"""Jobs through a router: progress, deletion, orphans, receipts, restarts; a job is completed only if it is stored."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve_app.core import JobStatus, Outcome, Priority, Progress, Retried, Urgency
from serve_app.errors import Busy, ContentGone, NotFound, RenderFailed, Unavailable
from serve_app.service.jobs import sweeper
from serve_app.service.jobs import tracker as desk_module
from serve_app.service.jobs.idempotency import FIRST, Mark, RequestAttempt
from serve_app.service.jobs.job import Job
from serve_app.service.jobs.signed_id import new_job_id
from serve_app.service.jobs.store import ORPHAN_SECONDS, JobStore, MemoryJobs
from serve_app.service.jobs.tracker import ADOPTED_AT_ONCE
from serve_app.service.service import VideoService
from serve_app.telemetry import Answered
from tests.conftest import ValkeyServer
from tests.serve_app.service.rig import SECRET, Rig, ask, ended, reached, until


async def test_progress_is_real_and_only_grows(rig: Rig) -> None:
    """The job shows nought, then each step as it is done, then 100 % when the video can be fetched."""
    rig.renderer.hold()
    service = rig.service()
    job = await service.jobs.submit(ask())
    assert (job.status.is_final, job.progress, job.outcome) == (False, 0, None)
    await reached(service, job, JobStatus.IN_PROGRESS)
    seen = []
    for step in range(1, rig.renderer.total):
        rig.renderer.allow(1)
        job = await reached(service, job, JobStatus.IN_PROGRESS, 25 * step)
        seen.append(job.progress)
        with pytest.raises(NotFound, match="not ready"):
            await service.jobs.content(job.id)
    rig.renderer.allow(1)
    job = await ended(service, job)
    assert seen == [25, 50, 75]
    assert (job.status, job.progress, job.outcome, job.embedding) == ("completed", 100, Outcome.RENDERED, "miss")
    assert (await service.jobs.content(job.id))[0].key == job.keys.video


async def test_progress_does_not_fall_when_a_render_begins_again(rig: Rig) -> None:
    """A render that another replica begins anew counts from nought; the job keeps the furthest it got."""
    rig.renderer.hold()
    service = rig.service()
    job = await service.jobs.submit(ask())
    rig.renderer.allow(3)
    await reached(service, job, JobStatus.IN_PROGRESS, 75)
    service.jobs._tracker._hear(job.id, Progress(1, 4))
    assert (await service.jobs.get(job.id)).progress == 75
    rig.renderer.allow()
    await ended(service, job)


async def test_a_jobs_record_counts_its_attempts(rig: Rig) -> None:
    """How many renders ended in a death is written to the record at once, and told to whoever renders it next."""
    rig.renderer.hold()
    jobs = MemoryJobs(clock=rig.clock)
    one = rig.service(jobs=jobs)
    job = await one.jobs.submit(ask())
    await reached(one, job, JobStatus.IN_PROGRESS)
    one.jobs._tracker._hear(job.id, Retried(2))
    await rounds(one)
    assert (await jobs.get(job.id)).attempts == 2
    await one.jobs._tracker.aclose()
    two = rig.service(jobs=jobs)
    await rounds(two)
    rig.clock.now += ORPHAN_SECONDS
    await rounds(two)
    rig.renderer.allow()
    assert (await ended(two, job)).status == "completed"
    assert rig.renderer.requests[-1].attempts == 2


async def test_a_failed_job_tells_why(rig: Rig) -> None:
    """A mapped failure shows its code and message; an unmapped one shows its kind, never its text."""
    service = rig.service()
    for failure, code in ((RenderFailed("no kernel"), "render_failed"), (ValueError("/a/path"), "internal_error")):
        rig.renderer.failure = failure
        job = await ended(service, await service.jobs.submit(ask()))
        assert (job.status, job.error_code, job.outcome) == ("failed", code, None)
        assert "/a/path" not in (job.error_message or "")
        with pytest.raises(NotFound, match="failed"):
            await service.jobs.content(job.id)
    assert [event.outcome for event in rig.events if isinstance(event, Answered)] == ["failed", "failed"]


async def test_completed_means_stored(tmp_path: Path) -> None:
    """At the moment a job is first seen completed, a fresh router without memory can give its content."""
    rig = Rig(tmp_path)
    service = rig.service()
    for seed in range(5):
        job = await ended(service, await service.jobs.submit(ask(seed=seed)))
        assert (await rig.cache(l1=False).get(job.keys.video)) is not None
    await rig.aclose()


async def test_delete_cancels_at_once(rig: Rig) -> None:
    """Deleting the only job of a render cancels it without the linger; the job is gone from then on."""
    rig.renderer.hold()
    service = rig.service(linger_seconds=60)
    job = await service.jobs.submit(ask())
    await reached(service, job, JobStatus.IN_PROGRESS)
    await service.jobs.delete(job.id)
    for call in (service.jobs.get, service.jobs.content, service.jobs.delete):
        with pytest.raises(NotFound):
            await call(job.id)
    await until(lambda: rig.renderer.cancelled == [job.keys.video])
    assert (await service.jobs.page(after=None, limit=9, order="asc")).jobs == ()


async def test_delete_leaves_the_render_to_others(rig: Rig) -> None:
    """With another job and a sync request on the same render, deleting one job leaves it to them."""
    rig.renderer.hold()
    service = rig.service(linger_seconds=60)
    job, other = await service.jobs.submit(ask()), await service.jobs.submit(ask())
    waiter = asyncio.create_task(service.generate(ask()))
    await reached(service, other, JobStatus.IN_PROGRESS)
    await service.jobs.delete(job.id)
    await asyncio.sleep(0.02)
    rig.renderer.allow()
    assert (await waiter).outcome is Outcome.JOINED
    assert (await ended(service, other)).outcome is Outcome.JOINED
    assert rig.renderer.cancelled == []


async def test_submitting_again_right_after_a_delete(rig: Rig) -> None:
    """A job for the same video, right after the deletion that cancelled its render, gets a render of its own."""
    rig.renderer.hold()
    service = rig.service(linger_seconds=60)
    job = await service.jobs.submit(ask())
    await reached(service, job, JobStatus.IN_PROGRESS)
    await service.jobs.delete(job.id)
    again = await service.jobs.submit(ask())
    rig.renderer.allow()
    assert (await ended(service, again)).status == "completed"


async def test_a_client_that_hangs_up_while_its_job_is_accepted(rig: Rig) -> None:
    """A submit that is cancelled while the record is written leaves a job that is followed to its end."""

    class Slow(MemoryJobs):
        async def accept(self, job: Job, mark: Mark) -> str:
            await asyncio.sleep(0.05)
            return await super().accept(job, mark)

    service = rig.service(jobs=Slow(), linger_seconds=0.01)
    submit = asyncio.create_task(service.jobs.submit(ask()))
    await asyncio.sleep(0.01)
    submit.cancel()
    await asyncio.gather(submit, return_exceptions=True)

    async def jobs() -> tuple[Job, ...]:
        return (await service.jobs.page(after=None, limit=9, order="asc")).jobs

    await until(jobs)
    (job,) = await jobs()
    assert (await ended(service, job)).status == "completed"


async def test_a_job_deleted_while_its_end_is_written_stays_deleted(rig: Rig) -> None:
    """The deletion comes while the follower stores the end: the job is gone, in memory as in the store."""
    writing, go = asyncio.Event(), asyncio.Event()

    class Slow(MemoryJobs):
        async def update(self, job: Job) -> Job | None:
            if job.status.is_final:
                writing.set()
                await go.wait()
            return await super().update(job)

    jobs = Slow(clock=rig.clock)
    service = rig.service(jobs=jobs)
    job = await service.jobs.submit(ask())
    await writing.wait()
    await service.jobs.delete(job.id)
    go.set()
    await until(lambda: not service.jobs._tracker._background)
    for look in (service.jobs.get, jobs.get):
        with pytest.raises(NotFound):
            await look(job.id)


async def test_a_job_read_while_it_is_deleted_is_not_kept(rig: Rig) -> None:
    """Somebody reads the finished record just before the deletion arrives: memory does not keep what is deleted."""
    reading, go = asyncio.Event(), asyncio.Event()

    class Slow(MemoryJobs):
        async def get(self, job_id: str) -> Job | None:
            job = await super().get(job_id)
            reading.set()
            await go.wait()
            return job

    jobs = Slow(clock=rig.clock)
    one = rig.service(jobs=jobs)
    job = await ended(one, await one.jobs.submit(ask()))
    two = rig.service(jobs=jobs)
    read = asyncio.create_task(two.jobs.get(job.id))
    await reading.wait()
    await one.jobs.delete(job.id)
    go.set()
    assert (await read).id == job.id
    with pytest.raises(NotFound):
        await two.jobs.get(job.id)


async def rounds(*services: VideoService) -> None:
    """What each router does once a second."""
    for service in services:
        await service.jobs._tracker._sweeper.round()


class Counting(MemoryJobs):
    """Says how often what was asked of it."""

    def __init__(self, rig: Rig) -> None:
        super().__init__(clock=rig.clock)
        self.calls: list[str] = []

    async def update(self, job: Job) -> Job | None:
        self.calls.append(f"update {job.status}")
        return await super().update(job)

    async def beat(self, job_ids: Iterable[str]) -> list[str]:
        self.calls.append(f"beat {len(list(job_ids))}")
        return await super().beat(job_ids)


async def test_one_heartbeat_stands_for_all_jobs(rig: Rig) -> None:
    """While jobs are rendered a round is one call; a record is written when the job starts and when it ends."""
    rig.renderer.hold()
    jobs = Counting(rig)
    service = rig.service(jobs=jobs)
    followed = [await service.jobs.submit(ask(seed=seed)) for seed in range(5)]
    for job in followed:
        await reached(service, job, JobStatus.IN_PROGRESS)
    await rounds(service)
    assert jobs.calls == ["update in_progress"] * 5 + ["beat 5"]
    rig.renderer.allow(10)
    await asyncio.sleep(0.01)
    await rounds(service, service)
    assert jobs.calls[6:] == ["beat 5"] * 2
    rig.renderer.allow()
    for job in followed:
        await ended(service, job)
    await rounds(service)
    assert jobs.calls[8:] == ["update completed"] * 5


async def test_deleted_through_another_router(shared_rig: Rig) -> None:
    """The router that is asked tells the following one, which cancels the render at once, without a round."""
    shared_rig.renderer.hold()
    one, two = shared_rig.service(linger_seconds=60), shared_rig.service(linger_seconds=60)
    job = await one.jobs.submit(ask())
    await reached(one, job, JobStatus.IN_PROGRESS)
    await two.jobs.delete(job.id)
    await until(lambda: shared_rig.renderer.cancelled == [job.keys.video], seconds=0.5)
    for service in (one, two):
        with pytest.raises(NotFound):
            await service.jobs.get(job.id)
        assert len(service.jobs._tracker) == 0


async def test_a_deletion_nobody_told_of(shared_rig: Rig) -> None:
    """When the message of a deletion is lost, the following router learns of it in its next round."""
    shared_rig.renderer.hold()
    one = shared_rig.service(linger_seconds=60)
    shared_rig.peers.services.clear()
    two = shared_rig.service()
    job = await one.jobs.submit(ask())
    await reached(one, job, JobStatus.IN_PROGRESS)
    await two.jobs.delete(job.id)
    assert len(one.jobs._tracker) == 1
    await rounds(one)
    await until(lambda: shared_rig.renderer.cancelled == [job.keys.video], seconds=0.5)
    assert len(one.jobs._tracker) == 0
    shared_rig.peers.services.append(one)


async def orphan(rig: Rig, jobs: JobStore, urgency: Urgency | None = None, **fields: Any) -> Job:
    """A job whose router is gone, as its store has it; the clock is where it may be adopted."""
    plan = rig.service().planner.plan(ask(**fields))
    job = Job(
        id=new_job_id(rig.clock.now), prompt=plan.asked, spec=plan.spec, keys=plan.keys, created_at=rig.clock.now,
        updated_at=rig.clock.now, expires_at=rig.clock.now + 1000, status=JobStatus.IN_PROGRESS, progress=40,
        urgency=urgency or Urgency(),
    )  # fmt: skip
    await jobs.add(job)
    rig.clock.now += ORPHAN_SECONDS
    return job


async def test_an_orphan_is_rendered_without_a_reader(rig: Rig) -> None:
    """A job that nobody follows for five seconds is rendered by the router that finds it, and nobody asked for it."""
    jobs = MemoryJobs(clock=rig.clock)
    old = await orphan(rig, jobs)
    fresh = await orphan(rig, jobs, seed=7)
    rig.clock.now -= 1  # so that the second one may still have a follower
    rig.renderer.hold()
    service = rig.service(jobs=jobs)
    assert await service.jobs.get(fresh.id) == fresh
    await rounds(service, service)
    await until(lambda: rig.renderer.asked == [old.keys.video])
    assert service.jobs._tracker.stats()["adopted"] == 1
    rig.renderer.allow()
    done = await ended(service, old)
    assert (done.status, done.outcome) == ("completed", Outcome.RENDERED)
    assert len(rig.renderer.asked) == 1
    assert len(service.jobs._tracker) == 0
    assert await jobs.get(old.id) == done


async def test_the_rounds_begin_by_themselves(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """`start`, or the first call of anything, is enough for orphans to be found from then on."""
    monkeypatch.setattr(sweeper, "ROUND_SECONDS", 0.01)
    for begin in (
        lambda service: service.start(),
        lambda service: asyncio.ensure_future(service.jobs.submit(ask(seed=9))),
    ):
        jobs = MemoryJobs(clock=rig.clock)
        service = rig.service(jobs=jobs)
        begin(service)
        job = await orphan(rig, jobs, seed=len(rig.renderer.asked) + 20)

        async def rendered(jobs: MemoryJobs = jobs, job_id: str = job.id) -> bool:
            found = await jobs.get(job_id)
            return found is not None and found.status is JobStatus.COMPLETED

        await until(rendered)


async def test_two_routers_share_the_orphans(shared_rig: Rig) -> None:
    """Each orphan is adopted by one router alone, at most so many in a round."""
    jobs = shared_rig.jobs()
    orphans = [await orphan(shared_rig, jobs, seed=seed) for seed in range(20)]
    shared_rig.renderer.hold()
    one, two = shared_rig.service(), shared_rig.service()
    await asyncio.gather(rounds(one), rounds(two))
    adopted = [set(service.jobs._tracker._followed) for service in (one, two)]
    assert adopted[0] | adopted[1] == {job.id for job in orphans}
    assert not adopted[0] & adopted[1]
    assert max(map(len, adopted)) <= ADOPTED_AT_ONCE
    shared_rig.renderer.allow()
    for job in orphans:
        assert (await ended(one, job)).status == "completed"
    assert len(shared_rig.renderer.asked) == 20


@pytest.mark.parametrize("limits", [{"max_waiting": 3}, {"max_queued": 3}])
async def test_no_more_are_adopted_than_there_is_room_for(rig: Rig, limits: dict[str, int]) -> None:
    """Orphans take places like other jobs do; those for which there is none wait for one, here or on another router."""
    jobs = MemoryJobs(clock=rig.clock)
    orphans = [await orphan(rig, jobs, seed=seed) for seed in range(5)]
    rig.renderer.hold()
    service = rig.service(jobs=jobs, **limits)
    mine = await service.jobs.submit(ask(seed=99))
    await rounds(service, service)
    assert len(service.jobs._tracker) == 3
    with pytest.raises(Busy):
        await service.jobs.submit(ask(seed=100))
    rig.renderer.allow()
    await ended(service, mine)
    for _ in range(4):
        await rounds(service)
        await until(lambda: len(service.jobs._tracker) == 0)
    assert [(await jobs.get(job.id)).status for job in orphans] == ["completed"] * 5


async def test_what_an_orphan_waited_for_may_be_there(shared_rig: Rig) -> None:
    """A router died after the video was stored: the adopted job is completed by finding it, with no second render."""
    answer = await shared_rig.service().generate(ask())
    jobs = shared_rig.jobs()
    job = await orphan(shared_rig, jobs)
    service = shared_rig.service()
    await rounds(service)
    done = await ended(service, job)
    assert (done.keys.video, done.outcome, len(shared_rig.renderer.asked)) == (answer.keys.video, Outcome.L2, 1)


async def test_an_adopted_job_keeps_its_urgency_and_its_progress(shared_rig: Rig) -> None:
    """A batch job with a deadline is rendered as such by the router that adopts it, and its progress does not fall."""
    wanted = Urgency(Priority.BATCH, shared_rig.clock.now + 600)
    job = await orphan(shared_rig, shared_rig.jobs(), urgency=wanted)
    shared_rig.renderer.hold()
    service = shared_rig.service()
    await rounds(service)
    shared_rig.renderer.allow(1)
    await until(lambda: service.jobs._tracker._followed[job.id].job.step == 1)
    assert (await service.jobs.get(job.id)).progress == 40
    shared_rig.renderer.allow()
    done = await ended(service, job)
    assert (done.urgency, done.created_at) == (wanted, job.created_at)
    assert [request.urgency for request in shared_rig.renderer.requests] == [wanted]


async def test_a_router_that_was_held_up_is_no_second_follower_for_long(shared_rig: Rig) -> None:
    """A router so slow that its job was adopted elsewhere: the end is told once, and both routers show the same."""
    shared_rig.renderer.hold()
    one, two = shared_rig.service(), shared_rig.service()
    job = await one.jobs.submit(ask())
    await reached(one, job, JobStatus.IN_PROGRESS)
    shared_rig.clock.now += ORPHAN_SECONDS
    await rounds(two)
    assert (len(one.jobs._tracker), len(two.jobs._tracker)) == (1, 1)
    shared_rig.renderer.allow()
    done = await ended(two, job)
    await until(lambda: len(one.jobs._tracker) == 0)
    assert await one.jobs.get(job.id) == done
    told = [event.outcome for event in shared_rig.events if isinstance(event, Answered)]
    assert told == [done.outcome]


async def test_redis_lost_its_data(tmp_path: Path, start_valkey: Callable[..., ValkeyServer]) -> None:
    """After a restart of Redis without its file, the next round writes the followed jobs anew; none is cancelled."""
    server = start_valkey()
    rig = Rig(tmp_path / "l3", server.url)
    rig.renderer.hold()
    service = rig.service()
    job = await reached(service, await service.jobs.submit(ask()), JobStatus.IN_PROGRESS)
    server.flush()
    assert (await rig.service().jobs.page(after=None, limit=9, order="asc")).jobs == ()
    await rounds(service)
    (listed,) = (await rig.service().jobs.page(after=None, limit=9, order="asc")).jobs
    assert (listed.id, listed.status) == (job.id, "in_progress")
    rig.renderer.allow()
    assert (await ended(service, job)).status == "completed"
    await rig.aclose()


async def test_jobs_expire(rig: Rig) -> None:
    """After `expires_at` a job is unknown, although memory has it still, and it is deleted no more."""
    service = rig.service(job_ttl_seconds=100)
    job = await ended(service, await service.jobs.submit(ask()))
    hit = await service.jobs.submit(ask())
    rig.clock.now += 99
    assert (await service.jobs.get(job.id)).status == "completed"
    rig.clock.now += 1
    for job_id in (job.id, hit.id):
        for call in (service.jobs.get, service.jobs.content, service.jobs.delete):
            with pytest.raises(NotFound, match="There is no video"):
                await call(job_id)


async def test_content_that_is_gone(shared_rig: Rig) -> None:
    """A completed job whose video no tier has is `content_gone`, for its state and its content; it can be deleted."""
    service = shared_rig.service()
    job = await ended(service, await service.jobs.submit(ask()))
    await service.invalidate(job.keys.video)
    for router in (service, shared_rig.service()):
        for call in (router.jobs.get, router.jobs.content, router.jobs.events):
            with pytest.raises(ContentGone, match="no longer stored"):
                await call(job.id)
    assert [listed.status for listed in (await service.jobs.page(after=None, limit=9, order="asc")).jobs] == [
        "completed"
    ]
    await service.jobs.delete(job.id)
    with pytest.raises(NotFound, match="deleted"):
        await service.jobs.get(job.id)


async def test_content_that_may_be_there(tmp_path: Path, start_valkey: Callable[..., ValkeyServer]) -> None:
    """Where a tier cannot be asked, a completed job is not called gone: that would be a guess."""
    server = start_valkey()
    rig = Rig(tmp_path / "l3", server.url)
    jobs = MemoryJobs(clock=rig.clock)
    service = rig.service(jobs=jobs)
    job = await ended(service, await service.jobs.submit(ask()))
    await service.invalidate(job.keys.video)
    server.kill()
    assert (await rig.service(jobs=jobs).jobs.get(job.id)).status == "completed"
    await rig.aclose()


async def test_a_hit_is_a_receipt(rig: Rig) -> None:
    """A job for a video in memory is complete at once; another router with the secret answers without a record."""
    service = rig.service()
    await service.generate(ask())
    job = await service.jobs.submit(ask(" A red circle moves LEFT!"))
    assert (job.status, job.outcome, job.prompt) == ("completed", Outcome.L1, " A red circle moves LEFT!")
    elsewhere = rig.service()
    entry, same, _ = await elsewhere.jobs.content(job.id)
    assert entry.key == job.keys.video
    assert (same.id, same.status) == (job.id, "completed")
    assert same.spec == replace(job.spec, prompt="")  # what is stored beside a video tells no prompt
    assert abs(same.created_at - job.created_at) < 1e-6
    with pytest.raises(NotFound):
        await rig.service(secret=SECRET + b"!").jobs.get(job.id)
    for broken in (job.id[:-1], job.id + "A", job.id[:-1] + ("A" if job.id[-1] != "A" else "B")):
        with pytest.raises(NotFound):
            await elsewhere.jobs.get(broken)


async def test_a_receipt_read_twice_at_once_is_one_job(rig: Rig) -> None:
    """Two readers of an unrecorded receipt make one record: listing shows it once, and deleting it once suffices."""
    first = rig.service()
    await first.generate(ask())
    job = await first.jobs.submit(ask())
    service = rig.service()
    await asyncio.gather(service.jobs.content(job.id), service.jobs.content(job.id), service.jobs.get(job.id))
    await until(lambda: not service.jobs._tracker._background)
    assert [listed.id for listed in (await service.jobs.page(after=None, limit=9, order="asc")).jobs] == [job.id]
    await service.jobs.delete(job.id)
    assert (await service.jobs.page(after=None, limit=9, order="asc")).jobs == ()


async def test_a_deleted_receipt_stays_deleted(shared_rig: Rig) -> None:
    """A deleted hit is gone on every router, old and new, in every spelling; its video stays cached."""
    service = shared_rig.service()
    await service.generate(ask())
    job = await service.jobs.submit(ask())
    await service.jobs.delete(job.id)
    await until(lambda: not service.jobs._tracker._background)
    for router in (service, shared_rig.service()):
        for job_id in (job.id, job.id.removeprefix("video_"), job.id + "="):
            with pytest.raises(NotFound):
                await router.jobs.content(job_id)
    assert (await service.generate(ask())).outcome is Outcome.L1
    assert (await service.jobs.page(after=None, limit=9, order="asc")).jobs == ()


async def test_a_receipt_ends_when_it_said_it_would(rig: Rig) -> None:
    """After `expires_at` a receipt is unknown, like a job whose record expired, although its video is stored."""
    service = rig.service(job_ttl_seconds=100)
    await service.generate(ask())
    job = await service.jobs.submit(ask())
    assert job.expires_at == rig.clock.now + 100
    rig.clock.now += 101
    with pytest.raises(NotFound):
        await rig.service(job_ttl_seconds=100).jobs.get(job.id)


async def test_a_receipt_whose_video_is_gone(rig: Rig) -> None:
    """When the video was invalidated, the receipt's content is NotFound and says why."""
    service = rig.service()
    await service.generate(ask())
    job = await service.jobs.submit(ask())
    await service.invalidate(job.keys.video)
    for router in (service, rig.service()):
        for call in (router.jobs.get, router.jobs.content):
            with pytest.raises(ContentGone):
                await call(job.id)


async def test_restart_keeps_jobs_and_content(shared_rig: Rig) -> None:
    """A new router over the same Valkey and folder lists yesterday's jobs, has their content and ends the rest."""
    service = shared_rig.service()
    done = await ended(service, await service.jobs.submit(ask("finished")))
    hit = await service.jobs.submit(ask("finished"))
    shared_rig.renderer.hold()
    cut = await service.jobs.submit(ask("cut short"))
    await reached(service, cut, JobStatus.IN_PROGRESS)
    await service.aclose()

    shared_rig.clock.now += ORPHAN_SECONDS
    fresh = shared_rig.service()
    page = await fresh.jobs.page(after=None, limit=9, order="asc")
    assert {job.id for job in page.jobs} == {done.id, hit.id, cut.id}
    for job in (done, hit):
        entry, same, _ = await fresh.jobs.content(job.id)
        assert (entry.key, same.prompt, same.status) == (job.keys.video, "finished", "completed")
    shared_rig.renderer.allow()
    await rounds(fresh)
    assert (await ended(fresh, cut)).status == "completed"


async def test_a_redis_outage_during_a_render(tmp_path: Path, start_valkey: Callable[..., ValkeyServer]) -> None:
    """Valkey dies mid-render: the job completes, its content is served, and its record says so once Valkey is back.

    Meanwhile a new job is Unavailable, for memory would not survive this process; a hit in memory is not.
    """
    server = start_valkey(persistent=True)
    rig = Rig(tmp_path / "l3", server.url)
    rig.renderer.hold()
    jobs = rig.jobs()
    service = rig.service(jobs=jobs)
    job = await service.jobs.submit(ask())
    await reached(service, job, JobStatus.IN_PROGRESS)
    server.kill()
    await rounds(service)
    rig.renderer.allow()
    job = await ended(service, job)
    assert (job.status, service.jobs._tracker.stats()["unwritten"]) == ("completed", 1)
    assert (await service.jobs.content(job.id))[0].key == job.keys.video
    assert rig.renderer.cancelled == []
    with pytest.raises(Unavailable) as refused:
        await service.jobs.submit(ask(seed=7))
    assert refused.value.retry_after is not None
    for attempt in (FIRST, RequestAttempt("key"), RequestAttempt(retried=True)):
        hit = await service.jobs.submit(ask(), attempt)
        assert (hit.status, hit.outcome) == ("completed", Outcome.L1)
        assert (await rig.service().jobs.content(hit.id))[0].key == job.keys.video
    with pytest.raises(Unavailable):
        await service.jobs.get(new_job_id(1.8e9))
    server.restart()
    jobs._circuit.reach._opened_at = -1e9
    await asyncio.sleep(0.05)
    await rounds(service)
    fresh = rig.service()
    assert (await fresh.jobs.get(job.id)).status == "completed"
    assert len((await fresh.jobs.page(after=None, limit=9, order="asc")).jobs) == 4
    assert service.jobs._tracker.stats()["unwritten"] == 0
    await rig.aclose()


async def test_a_refused_job_is_not_rendered(tmp_path: Path, start_valkey: Callable[..., ValkeyServer]) -> None:
    """A job that could not be kept leaves no flight behind: nobody waits for it."""
    server = start_valkey()
    rig = Rig(tmp_path / "l3", server.url)
    rig.renderer.hold()
    service = rig.service(linger_seconds=60)
    server.kill()
    with pytest.raises(Unavailable):
        await service.jobs.submit(ask())
    await until(lambda: len(service._loader) == 0)
    assert len(service.jobs._tracker) == 0
    await rig.aclose()


async def test_a_deletion_during_an_outage(tmp_path: Path, start_valkey: Callable[..., ValkeyServer]) -> None:
    """A job that is followed here is deleted while Valkey is away; when it is back, no other router brings it back."""
    server = start_valkey(persistent=True)
    rig = Rig(tmp_path / "l3", server.url)
    rig.renderer.hold()
    jobs = rig.jobs()
    service = rig.service(jobs=jobs)
    job = await reached(service, await service.jobs.submit(ask()), JobStatus.IN_PROGRESS)
    server.kill()
    await service.jobs.delete(job.id)
    await until(lambda: rig.renderer.cancelled == [job.keys.video])
    with pytest.raises(NotFound, match="deleted"):
        await service.jobs.get(job.id)
    server.restart()
    jobs._circuit.reach._opened_at = -1e9
    await asyncio.sleep(0.05)
    await rounds(service)
    fresh = rig.service()
    with pytest.raises(NotFound, match="deleted"):
        await fresh.jobs.get(job.id)
    rig.clock.now += ORPHAN_SECONDS
    await rounds(fresh)
    assert len(fresh.jobs._tracker) == 0
    await rig.aclose()


async def test_pages_show_the_newest_state(rig: Rig) -> None:
    """A list shows the progress of a followed job as the job itself does, not the record's."""
    rig.renderer.hold()
    service = rig.service()
    job = await service.jobs.submit(ask())
    rig.renderer.allow(2)
    await reached(service, job, JobStatus.IN_PROGRESS, 50)
    (listed,) = (await service.jobs.page(after=None, limit=9, order="desc")).jobs
    assert listed == await service.jobs.get(job.id)
    rig.renderer.allow()
    await ended(service, job)


async def test_finished_jobs_in_memory_are_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of finished jobs only the newest are kept in memory; the store still has the rest."""
    monkeypatch.setattr(desk_module, "KEPT_FINISHED", 3)
    service = rig.service()
    await service.generate(ask())
    jobs = [await service.jobs.submit(ask()) for _ in range(6)]
    await until(lambda: not service.jobs._tracker._background)
    assert service.jobs._tracker.stats()["finished_kept"] == 3
    assert (await service.jobs.get(jobs[0].id)).id == jobs[0].id
    assert service.jobs._tracker.stats()["finished_kept"] == 3


async def test_a_job_that_is_asked_for_stays_in_memory(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of other jobs pushes out those that nobody reads, not one that is read: its content stays a hit in L1."""
    monkeypatch.setattr(desk_module, "KEPT_FINISHED", 3)
    service = rig.service()
    await service.generate(ask())
    hot, *_ = [await service.jobs.submit(ask()) for _ in range(3)]
    for _ in range(4):
        await service.jobs.get(hot.id)
        await service.jobs.submit(ask())
    assert hot.id in service.jobs._tracker._finished
    await service.aclose()


async def test_closing_leaves_jobs_to_others(rig: Rig) -> None:
    """Closing a router does not fail, delete or cancel what it followed."""
    rig.renderer.hold()
    jobs = MemoryJobs()
    service: VideoService = rig.service(jobs=jobs)
    job = await service.jobs.submit(ask())
    await reached(service, job, JobStatus.IN_PROGRESS)
    began = time.monotonic()
    await service.aclose()
    assert time.monotonic() - began < 20
    assert rig.renderer.cancelled == []
    record = await jobs.get(job.id)
    assert record is not None
    assert not record.status.is_final
