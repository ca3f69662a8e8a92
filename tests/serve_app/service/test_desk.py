"""Jobs through a router: progress, deletion, orphans, receipts, restarts; a job is completed only if it is stored."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from serve_app.core import JobStatus, Outcome, Priority, Progress, Urgency
from serve_app.errors import NotFound, RenderFailed
from serve_app.service import desk as desk_module
from serve_app.service.jobs import Job, JobStore, MemoryJobs
from serve_app.service.receipt import new_job_id
from serve_app.service.service import VideoService
from serve_app.telemetry import Answered
from tests.conftest import ValkeyServer
from tests.serve_app.service.rig import SECRET, Rig, ask, ended, reached, until


async def test_progress_is_real_and_only_grows(rig: Rig) -> None:
    """The job shows nought, then each step as it is done, then 100 % when the video can be fetched."""
    rig.renderer.hold()
    service = rig.service()
    job = await service.submit(ask())
    assert (job.status.is_final, job.progress, job.outcome) == (False, 0, None)
    await reached(service, job, JobStatus.IN_PROGRESS)
    seen = []
    for step in range(1, rig.renderer.total):
        rig.renderer.allow(1)
        job = await reached(service, job, JobStatus.IN_PROGRESS, 25 * step)
        seen.append(job.progress)
        with pytest.raises(NotFound, match="not ready"):
            await service.content(job.id)
    rig.renderer.allow(1)
    job = await ended(service, job)
    assert seen == [25, 50, 75]
    assert (job.status, job.progress, job.outcome, job.embedding) == ("completed", 100, Outcome.RENDERED, "miss")
    assert (await service.content(job.id))[0].key == job.keys.video


async def test_progress_does_not_fall_when_a_render_begins_again(rig: Rig) -> None:
    """A render that another replica begins anew counts from nought; the job keeps the furthest it got."""
    rig.renderer.hold()
    service = rig.service()
    job = await service.submit(ask())
    rig.renderer.allow(3)
    await reached(service, job, JobStatus.IN_PROGRESS, 75)
    service._desk._hear(job.id, Progress(1, 4))
    assert (await service.job(job.id)).progress == 75
    rig.renderer.allow()
    await ended(service, job)


async def test_a_failed_job_tells_why(rig: Rig) -> None:
    """A mapped failure shows its code and message; an unmapped one shows its kind, never its text."""
    service = rig.service()
    for failure, code in ((RenderFailed("no kernel"), "render_failed"), (ValueError("/a/path"), "internal_error")):
        rig.renderer.failure = failure
        job = await ended(service, await service.submit(ask()))
        assert (job.status, job.error_code, job.outcome) == ("failed", code, None)
        assert "/a/path" not in (job.error_message or "")
        with pytest.raises(NotFound, match="failed"):
            await service.content(job.id)
    assert [event.outcome for event in rig.events if isinstance(event, Answered)] == ["failed", "failed"]


async def test_completed_means_stored(tmp_path: Path) -> None:
    """At the moment a job is first seen completed, a fresh router without memory can give its content."""
    rig = Rig(tmp_path)
    service = rig.service()
    for seed in range(5):
        job = await ended(service, await service.submit(ask(seed=seed)))
        assert (await rig.cache(l1=False).get(job.keys.video)) is not None
    await rig.aclose()


async def test_delete_cancels_at_once(rig: Rig) -> None:
    """Deleting the only job of a render cancels it without the linger; the job is gone from then on."""
    rig.renderer.hold()
    service = rig.service(linger_seconds=60)
    job = await service.submit(ask())
    await reached(service, job, JobStatus.IN_PROGRESS)
    await service.delete(job.id)
    for call in (service.job, service.content, service.delete):
        with pytest.raises(NotFound):
            await call(job.id)
    await until(lambda: rig.renderer.cancelled == [job.keys.video])
    assert (await service.jobs(after=None, limit=9, order="asc")).jobs == ()


async def test_delete_leaves_the_render_to_others(rig: Rig) -> None:
    """With another job and a sync request on the same render, deleting one job leaves it to them."""
    rig.renderer.hold()
    service = rig.service(linger_seconds=60)
    job, other = await service.submit(ask()), await service.submit(ask())
    waiter = asyncio.create_task(service.generate(ask()))
    await reached(service, other, JobStatus.IN_PROGRESS)
    await service.delete(job.id)
    await asyncio.sleep(0.02)
    rig.renderer.allow()
    assert (await waiter).outcome is Outcome.JOINED
    assert (await ended(service, other)).outcome is Outcome.JOINED
    assert rig.renderer.cancelled == []


async def test_submitting_again_right_after_a_delete(rig: Rig) -> None:
    """A job for the same video, right after the deletion that cancelled its render, gets a render of its own."""
    rig.renderer.hold()
    service = rig.service(linger_seconds=60)
    job = await service.submit(ask())
    await reached(service, job, JobStatus.IN_PROGRESS)
    await service.delete(job.id)
    again = await service.submit(ask())
    rig.renderer.allow()
    assert (await ended(service, again)).status == "completed"


async def test_a_client_that_hangs_up_while_its_job_is_accepted(rig: Rig) -> None:
    """A submit that is cancelled while the record is written leaves a job that is followed to its end."""

    class Slow(MemoryJobs):
        async def add(self, job: Job) -> None:
            await asyncio.sleep(0.05)
            await super().add(job)

    service = rig.service(jobs=Slow(), linger_seconds=0.01)
    submit = asyncio.create_task(service.submit(ask()))
    await asyncio.sleep(0.01)
    submit.cancel()
    await asyncio.gather(submit, return_exceptions=True)
    await asyncio.sleep(0.06)
    (job,) = (await service.jobs(after=None, limit=9, order="asc")).jobs
    assert (await ended(service, job)).status == "completed"


async def test_a_job_deleted_while_its_end_is_written_stays_deleted(rig: Rig) -> None:
    """The follower stores the end just before the deletion arrives: memory forgets it with the store."""
    reached_end, go = asyncio.Event(), asyncio.Event()

    class Crossing(MemoryJobs):
        async def delete(self, job_id: str) -> bool:
            reached_end.set()
            await go.wait()
            return await super().delete(job_id)

    rig.renderer.hold()
    service = rig.service(jobs=Crossing())
    job = await service.submit(ask())
    deletion = asyncio.create_task(service.delete(job.id))
    await reached_end.wait()
    rig.renderer.allow()
    await until(lambda: not service._desk._followed)
    go.set()
    await deletion
    with pytest.raises(NotFound):
        await service.job(job.id)


async def test_heartbeats_reach_the_store(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a job is followed, its record's time and progress are written every heartbeat."""
    monkeypatch.setattr(desk_module, "HEARTBEAT_SECONDS", 0.01)
    rig.renderer.hold()
    jobs = MemoryJobs()
    service = rig.service(jobs=jobs)
    job = await service.submit(ask())
    rig.clock.now += 100
    rig.renderer.allow(2)

    def record() -> Job:
        return jobs._jobs[job.id]

    await until(lambda: record().updated_at == rig.clock.now and record().progress == 50)
    rig.renderer.allow()
    await ended(service, job)
    assert record().status == "completed"


async def test_deleted_through_another_router(shared_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The following router learns of the deletion at its next heartbeat and cancels the render."""
    monkeypatch.setattr(desk_module, "HEARTBEAT_SECONDS", 0.02)
    shared_rig.renderer.hold()
    one, two = shared_rig.service(linger_seconds=60), shared_rig.service(linger_seconds=60)
    job = await one.submit(ask())
    await reached(one, job, JobStatus.IN_PROGRESS)
    await two.delete(job.id)
    await until(lambda: shared_rig.renderer.cancelled == [job.keys.video])
    for service in (one, two):
        with pytest.raises(NotFound):
            await service.job(job.id)


async def orphan(rig: Rig, jobs: JobStore, age: float, urgency: Urgency | None = None) -> Job:
    plan = rig.service().planner.plan(ask())
    then = rig.clock.now - age
    job = Job(
        id=new_job_id(), prompt=plan.asked, spec=plan.spec, keys=plan.keys,
        created_at=then, updated_at=then, expires_at=then + 1000, status=JobStatus.IN_PROGRESS, progress=40,
        urgency=urgency or Urgency(),
    )  # fmt: skip
    await jobs.add(job)
    return job


async def test_an_orphan_is_adopted_and_rendered(rig: Rig) -> None:
    """A record whose follower is gone for longer than ten seconds is followed anew by whoever reads it, to its end."""
    jobs = MemoryJobs()
    fresh, old = await orphan(rig, jobs, 5), await orphan(rig, jobs, 11)
    rig.renderer.hold()
    service = rig.service(jobs=jobs)
    assert await service.job(fresh.id) == fresh
    assert rig.renderer.asked == []
    found = await asyncio.gather(*(service.job(old.id) for _ in range(3)))
    assert {job.id for job in found} == {old.id}
    rig.renderer.allow()
    done = await ended(service, old)
    assert (done.status, done.outcome) == ("completed", Outcome.RENDERED)
    assert len(rig.renderer.asked) == 1
    assert len(service._desk) == 0


async def test_an_adopted_job_keeps_its_urgency(shared_rig: Rig) -> None:
    """A batch job with a deadline whose router is gone is rendered as such by the router that adopts its record."""
    wanted = Urgency(Priority.BATCH, shared_rig.clock.now + 600)
    job = await orphan(shared_rig, shared_rig.jobs(), 60, urgency=wanted)
    service = shared_rig.service()
    adopted = await service.job(job.id)
    assert adopted.urgency == wanted
    assert (await ended(service, adopted)).urgency == wanted
    assert [request.urgency for request in shared_rig.renderer.requests] == [wanted]


async def test_a_hit_is_a_receipt(rig: Rig) -> None:
    """A job for a video in memory is complete at once; another router with the secret answers without a record."""
    service = rig.service()
    await service.generate(ask())
    job = await service.submit(ask(" A red circle moves LEFT!"))
    assert (job.status, job.outcome, job.prompt) == ("completed", Outcome.L1, " A red circle moves LEFT!")
    elsewhere = rig.service()
    entry, same, _ = await elsewhere.content(job.id)
    assert entry.key == job.keys.video
    assert (same.id, same.status, same.spec) == (job.id, "completed", job.spec)
    assert abs(same.created_at - job.created_at) < 1e-6
    with pytest.raises(NotFound):
        await rig.service(secret=SECRET + b"!").job(job.id)
    for broken in (job.id[:-1], job.id + "A", job.id[:-1] + ("A" if job.id[-1] != "A" else "B")):
        with pytest.raises(NotFound):
            await elsewhere.job(broken)


async def test_a_receipt_read_twice_at_once_is_one_job(rig: Rig) -> None:
    """Two readers of an unrecorded receipt make one record: listing shows it once, and deleting it once suffices."""
    first = rig.service()
    await first.generate(ask())
    job = await first.submit(ask())
    service = rig.service()
    await asyncio.gather(service.content(job.id), service.content(job.id), service.job(job.id))
    await until(lambda: not service._desk._background)
    assert [listed.id for listed in (await service.jobs(after=None, limit=9, order="asc")).jobs] == [job.id]
    await service.delete(job.id)
    assert (await service.jobs(after=None, limit=9, order="asc")).jobs == ()


async def test_a_deleted_receipt_stays_deleted(shared_rig: Rig) -> None:
    """A deleted hit is gone on every router, old and new, in every spelling; its video stays cached."""
    service = shared_rig.service()
    await service.generate(ask())
    job = await service.submit(ask())
    await service.delete(job.id)
    await until(lambda: not service._desk._background)
    for router in (service, shared_rig.service()):
        for job_id in (job.id, job.id.removeprefix("video_"), job.id + "="):
            with pytest.raises(NotFound):
                await router.content(job_id)
    assert (await service.generate(ask())).outcome is Outcome.L1
    assert (await service.jobs(after=None, limit=9, order="asc")).jobs == ()


async def test_a_receipt_ends_when_it_said_it_would(rig: Rig) -> None:
    """After `expires_at` a receipt is unknown, like a job whose record expired, although its video is stored."""
    service = rig.service(job_ttl_seconds=100)
    await service.generate(ask())
    job = await service.submit(ask())
    assert job.expires_at == rig.clock.now + 100
    rig.clock.now += 101
    with pytest.raises(NotFound):
        await rig.service(job_ttl_seconds=100).job(job.id)


async def test_a_receipt_whose_video_is_gone(rig: Rig) -> None:
    """When the video was invalidated, the receipt's content is NotFound and says why."""
    service = rig.service()
    await service.generate(ask())
    job = await service.submit(ask())
    await service.invalidate(job.keys.video)
    with pytest.raises(NotFound, match="no longer stored"):
        await service.content(job.id)
    with pytest.raises(NotFound, match="no longer stored"):
        await rig.service().content(job.id)


async def test_restart_keeps_jobs_and_content(shared_rig: Rig) -> None:
    """A new router over the same Valkey and folder lists yesterday's jobs, has their content and ends the rest."""
    service = shared_rig.service()
    done = await ended(service, await service.submit(ask("finished")))
    hit = await service.submit(ask("finished"))
    shared_rig.renderer.hold()
    cut = await service.submit(ask("cut short"))
    await reached(service, cut, JobStatus.IN_PROGRESS)
    await service.aclose()

    shared_rig.clock.now += 60
    fresh = shared_rig.service()
    page = await fresh.jobs(after=None, limit=9, order="asc")
    assert {job.id for job in page.jobs} == {done.id, hit.id, cut.id}
    for job in (done, hit):
        entry, same, _ = await fresh.content(job.id)
        assert (entry.key, same.prompt, same.status) == (job.keys.video, "finished", "completed")
    shared_rig.renderer.allow()
    assert (await ended(fresh, await fresh.job(cut.id))).status == "completed"


async def test_a_redis_outage_during_a_render(
    tmp_path: Path, start_valkey: Callable[..., ValkeyServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Valkey dies mid-render: heartbeats fail, the render goes on, the job completes and its content is served."""
    monkeypatch.setattr(desk_module, "HEARTBEAT_SECONDS", 0.01)
    server = start_valkey()
    rig = Rig(tmp_path / "l3", server.url)
    rig.renderer.hold()
    service = rig.service()
    job = await service.submit(ask())
    await reached(service, job, JobStatus.IN_PROGRESS)
    server.kill()
    await asyncio.sleep(0.1)
    rig.renderer.allow()
    job = await ended(service, job)
    assert job.status == "completed"
    assert (await service.content(job.id))[0].key == job.keys.video
    assert rig.renderer.cancelled == []
    await rig.aclose()


async def test_pages_show_the_newest_state(rig: Rig) -> None:
    """A list shows the progress of a followed job as the job itself does, not the record's."""
    rig.renderer.hold()
    service = rig.service()
    job = await service.submit(ask())
    rig.renderer.allow(2)
    await reached(service, job, JobStatus.IN_PROGRESS, 50)
    (listed,) = (await service.jobs(after=None, limit=9, order="desc")).jobs
    assert listed == await service.job(job.id)
    rig.renderer.allow()
    await ended(service, job)


async def test_finished_jobs_in_memory_are_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of finished jobs only the newest are kept in memory; the store still has the rest."""
    monkeypatch.setattr(desk_module, "KEPT_FINISHED", 3)
    service = rig.service()
    await service.generate(ask())
    jobs = [await service.submit(ask()) for _ in range(6)]
    await until(lambda: not service._desk._background)
    assert service._desk.stats()["finished_kept"] == 3
    assert (await service.job(jobs[0].id)).id == jobs[0].id
    assert service._desk.stats()["finished_kept"] == 3


async def test_a_job_that_is_asked_for_stays_in_memory(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of other jobs pushes out those that nobody reads, not one that is read: its content stays a hit in L1."""
    monkeypatch.setattr(desk_module, "KEPT_FINISHED", 3)
    service = rig.service()
    await service.generate(ask())
    hot, *_ = [await service.submit(ask()) for _ in range(3)]
    for _ in range(4):
        await service.job(hot.id)
        await service.submit(ask())
    assert hot.id in service._desk._finished
    await service.aclose()


async def test_closing_leaves_jobs_to_others(rig: Rig) -> None:
    """Closing a router does not fail, delete or cancel what it followed."""
    rig.renderer.hold()
    jobs = MemoryJobs()
    service: VideoService = rig.service(jobs=jobs)
    job = await service.submit(ask())
    await reached(service, job, JobStatus.IN_PROGRESS)
    began = time.monotonic()
    await service.aclose()
    assert time.monotonic() - began < 1
    assert rig.renderer.cancelled == []
    record = await jobs.get(job.id)
    assert record is not None
    assert not record.status.is_final
