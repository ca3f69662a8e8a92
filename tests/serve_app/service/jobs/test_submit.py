"""Requests sent again: one job for all tries, on one router or several, whatever became of the first answer."""

from __future__ import annotations

import asyncio

import pytest

from serve_app.core import Outcome
from serve_app.errors import Busy, KeyReused, RenderFailed
from serve_app.service.jobs.idempotency import RequestAttempt
from serve_app.service.jobs.job import Job
from serve_app.service.service import VideoService
from tests.serve_app.service.rig import Rig, ask, ended, until

KEY = RequestAttempt("one and the same")
RETRY = RequestAttempt(retried=True)


@pytest.fixture(params=["memory", "redis"])
def any_rig(request: pytest.FixtureRequest) -> Rig:
    """A rig with either store."""
    rig: Rig = request.getfixturevalue("rig" if request.param == "memory" else "shared_rig")
    return rig


async def listed(service: VideoService) -> list[str]:
    return [job.id for job in (await service.jobs.page(after=None, limit=99, order="asc")).jobs]


async def test_a_key_names_one_job(any_rig: Rig) -> None:
    """The same request with the same key, before and after its end, is the first job in its newest state."""
    any_rig.renderer.hold()
    service = any_rig.service()
    first = await service.jobs.submit(ask(), KEY)
    again = await service.jobs.submit(ask(), KEY)
    assert (again.id, again.status.is_final) == (first.id, False)
    any_rig.renderer.allow()
    done = await ended(service, first)
    assert await service.jobs.submit(ask(), KEY) == done
    assert len(any_rig.renderer.asked) == 1
    assert await listed(service) == [first.id]


async def test_a_key_with_other_fields_is_refused(any_rig: Rig) -> None:
    """Any other field is another request; nothing is rendered for it, and the key still names the first."""
    service = any_rig.service()
    first = await service.jobs.submit(ask(), KEY)
    for other in (ask("something else"), ask(seed=7), ask(priority="batch"), ask(seed=42)):
        with pytest.raises(KeyReused):
            await service.jobs.submit(other, KEY)
    await ended(service, first)
    assert (await service.jobs.submit(ask(), KEY)).id == first.id
    assert len(any_rig.renderer.asked) == 1


async def test_many_tries_at_once(any_rig: Rig) -> None:
    """Concurrent requests with one key are one job, with one seed and one render that goes to its end."""
    any_rig.renderer.hold()
    service = any_rig.service()
    jobs = await asyncio.gather(*(service.jobs.submit(ask(seed="random"), KEY) for _ in range(10)))
    assert len({(job.id, job.spec.seed) for job in jobs}) == 1
    await until(lambda: len(service._loader) == 1)
    any_rig.renderer.allow()
    assert (await ended(service, jobs[0])).status == "completed"
    assert await listed(service) == [jobs[0].id]


async def test_tries_on_several_routers(shared_rig: Rig) -> None:
    """Tries that reach different routers at once are one job too."""
    services = [shared_rig.service() for _ in range(3)]
    jobs = await asyncio.gather(*(service.jobs.submit(ask(seed="random"), KEY) for service in services * 3))
    assert len({job.id for job in jobs}) == 1
    assert (await ended(services[0], jobs[0])).status == "completed"


async def test_a_retry_without_a_key(any_rig: Rig) -> None:
    """A request that says it is a retry gets the last job of the same fields; one that does not gets its own."""
    service = any_rig.service()
    first = await service.jobs.submit(ask(seed="random"))
    assert (await service.jobs.submit(ask(seed="random"), RETRY)).id == first.id
    second = await service.jobs.submit(ask(seed="random"))
    assert second.id != first.id
    retried = await service.jobs.submit(ask(seed="random"), RETRY)
    assert (retried.id, retried.spec.seed) == (second.id, second.spec.seed)
    other = await service.jobs.submit(ask(seed="random", fps=8), RETRY)
    assert other.id not in (first.id, second.id)
    assert (await service.jobs.submit(ask(seed="random", fps=8), RETRY)).id == other.id


async def test_a_retry_is_answered_by_a_full_server(any_rig: Rig) -> None:
    """Whoever was accepted is not told that the queue is full when asking again."""
    any_rig.renderer.hold()
    service = any_rig.service(max_queued=1)
    first = await service.jobs.submit(ask(), KEY)
    second = service.jobs.submit(ask("another"), RequestAttempt("another"))
    with pytest.raises(Busy):
        await second
    assert (await service.jobs.submit(ask(), KEY)).id == first.id
    assert (
        await any_rig.service(max_queued=0, jobs=service.jobs._tracker._store).jobs.submit(ask(), KEY)
    ).id == first.id


async def test_hits_are_repeated_too(any_rig: Rig) -> None:
    """For a video in memory a key or a retry is the first job; a plain hit is one of its own and leaves no mark."""
    service = any_rig.service()
    await service.generate(ask())
    for attempt in (KEY, RETRY):
        first = await service.jobs.submit(ask(), attempt)
        assert (first.status, first.outcome) == ("completed", Outcome.L1)
        assert await service.jobs.submit(ask(), attempt) == first
    plain = [await service.jobs.submit(ask()) for _ in range(2)]
    assert len({job.id for job in plain} | {first.id}) == 3
    assert (await service.jobs.submit(ask(), RETRY)).id == first.id
    assert first.id in await listed(service)


async def test_a_plain_hit_awaits_nothing(shared_rig: Rig) -> None:
    """A hit without a key is answered within the caller's own step of the event loop."""
    service = shared_rig.service()
    await service.generate(ask())
    coroutine = service.jobs.submit(ask())
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    assert done.value.value.outcome is Outcome.L1


async def test_a_first_job_that_answers_nobody_any_more(any_rig: Rig) -> None:
    """A key whose job was deleted, or whose video is gone, makes a new job, and names that one from then on."""
    service = any_rig.service()
    seen: list[Job] = []
    for end in (service.jobs.delete, lambda job_id: service.invalidate(seen[-1].keys.video)):
        seen.append(await ended(service, await service.jobs.submit(ask(), KEY)))
        await end(seen[-1].id)
    last = await ended(service, await service.jobs.submit(ask(), KEY))
    assert len({job.id for job in (*seen, last)}) == 3
    assert (await service.jobs.submit(ask(), KEY)).id == last.id


async def test_a_failed_job_stays_the_answer(any_rig: Rig) -> None:
    """A retry of a request whose render failed hears of the failure; it starts no second render."""
    service = any_rig.service()
    any_rig.renderer.failure = RenderFailed("no")
    first = await ended(service, await service.jobs.submit(ask(), KEY))
    any_rig.renderer.failure = None
    assert await service.jobs.submit(ask(), KEY) == first
    assert len(any_rig.renderer.asked) == 1
