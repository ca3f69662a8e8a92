"""One contract for job records, in memory and in a real Valkey; and what RedisJobs does when Valkey is gone."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from serve_app.cache.redis import RedisTier
from serve_app.core import JobStatus, Keys, Outcome, Priority, Urgency
from serve_app.errors import NotFound
from serve_app.model.model import load_family
from serve_app.schema import resolve
from serve_app.service.jobs import Job, JobStore, MemoryJobs, Order
from serve_app.service.redis_jobs import RedisJobs
from serve_app.telemetry import Event, Telemetry, TierRead
from tests.conftest import ValkeyServer
from tests.serve_app.service.rig import SECRET, ask, until

SPEC = resolve(ask(), load_family("native/demo").card)
NOW = time.time()


def a_job(number: int = 0, **fields: Any) -> Job:
    created = NOW + number
    keys = Keys("a" * 64, "b" * 64, "c" * 64, f"{number:064x}")
    standard = {"created_at": created, "updated_at": created, "expires_at": created + 3600}
    return Job(
        **{"id": f"video_{number}", "prompt": "p\u00e9 \U0001f600", "spec": SPEC, "keys": keys} | standard | fields
    )


def redis_jobs(url: str, events: list[Event], patience: float = 0.5) -> RedisJobs:
    tier = RedisTier(url, connect_timeout=patience, socket_timeout=patience, deadline=4 * patience)
    return RedisJobs(tier.client, secret=SECRET, telemetry=Telemetry(events.append))


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[JobStore]:
    if request.param == "memory":
        yield MemoryJobs()
        return
    server: ValkeyServer = request.getfixturevalue("valkey_server")
    server.flush()
    events: list[Event] = []
    made = redis_jobs(server.url, events, patience=20.0)  # a busy machine may keep Valkey waiting for most of a second
    yield made
    assert events == [], "nothing in the contract is an error of the tier"
    await made._redis.aclose()


def test_a_record_survives_its_json() -> None:
    """Every state of a job reads back from its bytes as it was, whatever the prompt holds."""
    job = a_job(urgency=Urgency(Priority.BATCH, NOW + 60.5))
    for state in (
        job,
        a_job(),
        job.completed(Outcome.JOINED, "hit", NOW + 5),
        job.failed("render_failed", "no", NOW + 5),
    ):
        assert Job.from_json(state.to_json()) == state


def test_a_record_of_an_earlier_release() -> None:
    """A record that was written before jobs had corrections and an urgency is read, with the defaults of both."""
    old = json.loads(a_job().to_json())
    del old["urgency"], old["corrected"]
    assert Job.from_json(json.dumps(old).encode()) == a_job()


async def test_add_get_update_delete(store: JobStore) -> None:
    """A record is what was stored last; after deletion it is gone for good and says so."""
    job = a_job()
    assert await store.get(job.id) is None
    await store.add(job)
    assert await store.get(job.id) == job
    done = job.completed(Outcome.RENDERED, "miss", NOW + 9)
    assert await store.update(done)
    assert await store.get(job.id) == done
    assert await store.delete(job.id)
    with pytest.raises(NotFound, match="deleted"):
        await store.get(job.id)
    assert not await store.delete(job.id)


async def test_update_keeps_deletions_and_mends_losses(store: JobStore) -> None:
    """Updating a deleted job says so and leaves no record; one that the store lost (a restart) is stored anew."""
    job = a_job()
    assert await store.update(job)
    assert await store.get(job.id) == job
    assert [listed.id for listed in (await store.page(after=None, limit=9, order="asc")).jobs] == [job.id]
    await store.delete(job.id)
    assert not await store.update(job)
    with pytest.raises(NotFound):
        await store.get(job.id)
    assert (await store.page(after=None, limit=9, order="asc")).jobs == ()


async def test_add_after_delete_brings_nothing_back(store: JobStore) -> None:
    """A record that is written behind the answer, and comes after the deletion, stays deleted."""
    job = a_job()
    await store.delete(job.id)
    await store.add(job)
    with pytest.raises(NotFound):
        await store.get(job.id)
    assert (await store.page(after=None, limit=9, order="desc")).jobs == ()


async def test_add_twice_is_add_once(store: JobStore) -> None:
    """Two readers of one receipt may both write its record: it is listed once, and one deletion removes it."""
    job = a_job()
    await store.add(job)
    await store.add(replace(job))
    assert (await store.page(after=None, limit=9, order="asc")).jobs == (job,)
    await store.delete(job.id)
    assert (await store.page(after=None, limit=9, order="asc")).jobs == ()


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
async def test_pages(store: JobStore, order: Order, count: int) -> None:
    """Walking the pages gives each job once, in creation order either way, and the last page says it is the last."""
    jobs = [a_job(number) for number in range(count)]
    for job in jobs[::2] + jobs[1::2]:
        await store.add(job)
    expected = jobs if order == "asc" else jobs[::-1]
    for limit in (1, 3, 7, 100):
        walked: list[Job] = []
        more = True
        while more:
            page = await store.page(after=walked[-1].id if walked else None, limit=limit, order=order)
            assert len(page.jobs) <= limit
            walked += page.jobs
            more = page.has_more
            assert more == (len(walked) < count)
        assert walked == expected


async def test_paging_past_what_was_deleted(store: JobStore) -> None:
    """Deleted jobs are skipped, pages stay full, and an unknown `after` is NotFound."""
    for number in range(8):
        await store.add(a_job(number))
    for number in (0, 2, 3, 6):
        await store.delete(f"video_{number}")
    page = await store.page(after=None, limit=3, order="asc")
    assert [job.id for job in page.jobs] == ["video_1", "video_4", "video_5"]
    assert page.has_more
    for after in ("video_2", "nobody", "", "/index"):
        with pytest.raises(NotFound):
            await store.page(after=after, limit=3, order="asc")


async def test_memory_is_bounded() -> None:
    """Beyond `max_jobs` the oldest record is forgotten, and so is the oldest tombstone."""
    store = MemoryJobs(max_jobs=3)
    for number in (4, 1, 3, 2, 0):
        await store.add(a_job(number))
    assert len(store) == 3
    assert [job.id for job in (await store.page(after=None, limit=9, order="asc")).jobs] == [
        "video_2",
        "video_3",
        "video_4",
    ]
    for number in range(5):
        await store.delete(f"video_{number}")
    assert [store.was_deleted(f"video_{number}") for number in range(5)] == [False, False, True, True, True]
    assert len(store) == 0


async def test_redis_forgets_at_expires_at(valkey_server: ValkeyServer) -> None:
    """A record lives until its `expires_at`, through updates, and an expired one is skipped in pages."""
    valkey_server.flush()
    store = redis_jobs(valkey_server.url, [])
    await store.add(a_job(1))
    await store.add(a_job(-3590, expires_at=int(time.time()) + 1))
    assert await store.update(a_job(-3590).completed(Outcome.L1, None, NOW))

    async def expired() -> bool:
        return await store.get("video_-3590") is None

    await until(expired)
    page = await store.page(after=None, limit=9, order="asc")
    assert ([job.id for job in page.jobs], page.has_more) == (["video_1"], False)
    await store.update(a_job(-3590, expires_at=int(time.time()) - 1))
    assert await store.get("video_-3590") is None
    await store._redis.aclose()


async def test_names_are_secret(valkey_server: ValkeyServer) -> None:
    """Under another secret the same server shows no job; no key in Redis holds an id."""
    valkey_server.flush()
    store = redis_jobs(valkey_server.url, [])
    await store.add(a_job(1))
    other = RedisJobs(store._redis, secret=b"another", telemetry=Telemetry())
    assert await other.get("video_1") is None
    assert (await other.page(after=None, limit=9, order="asc")).jobs == ()
    assert not [key for key in await store._redis.keys("*") if b"video" in key]
    await store._redis.aclose()


async def test_without_redis_it_goes_on_from_memory(start_valkey: Callable[..., ValkeyServer]) -> None:
    """With Valkey killed: jobs under way and new ones are answered from memory, errors are counted, none is raised.

    When it is back, empty, what was kept in memory is still known, and what was deleted meanwhile stays deleted.
    """
    server, events = start_valkey(persistent=True), list[Event]()
    store = redis_jobs(server.url, events)
    before, doomed = a_job(1), a_job(2)
    await store.add(before)
    await store.add(doomed)
    server.kill()
    running = replace(before, status=JobStatus.IN_PROGRESS, progress=50)
    assert await store.update(running), "an outage must not look like a deletion: that would cancel the render"
    assert await store.get(before.id) == running
    during = a_job(3)
    await store.add(during)
    assert await store.get(during.id) == during
    assert [job.id for job in (await store.page(after=None, limit=9, order="desc")).jobs] == ["video_3", "video_1"]
    await store.delete(doomed.id)
    assert not await store.update(doomed)
    errors = [event for event in events if isinstance(event, TierRead) and event.result == "error"]
    assert len(errors) >= 6
    assert {(error.tier, error.kind) for error in errors} == {("l2", "job")}

    server.restart()
    store._breaker._opened_at = -1e9  # its five seconds are over
    done = running.completed(Outcome.RENDERED, None, NOW)
    assert await store.update(done)
    assert await store.get(before.id) == done
    assert await store.get(during.id) == during
    with pytest.raises(NotFound):
        await store.get(doomed.id)
    assert [job.id for job in (await store.page(after=None, limit=9, order="asc")).jobs] == ["video_1"]
    await store._redis.aclose()


async def test_redis_is_left_alone_after_a_few_failures(start_valkey: Callable[..., ValkeyServer]) -> None:
    """A Redis that does not answer is not asked at every poll; NotFound is an answer and no failure."""
    server, events = start_valkey(), list[Event]()
    store = redis_jobs(server.url, events)
    for _ in range(5):
        await store.delete("video_1")
        with pytest.raises(NotFound):
            await store.page(after="nobody", limit=1, order="asc")
    assert store._breaker.state == "closed"
    server.kill()
    for number in range(5):
        assert await store.get(f"video_{number + 10}") is None
    assert store._breaker.state == "open"
    assert len(events) == 5
    await store._redis.aclose()
