"""One contract for job records, in memory and in a real Valkey; the two against each other; and Valkey's deaths."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.core import Outcome
from serve_app.errors import EncoreError, KeyReused, NotFound, Unavailable
from serve_app.service.job import Job, Order
from serve_app.service.jobs import ORPHAN_SECONDS, JobStore, MemoryJobs
from serve_app.service.redis_jobs import RedisJobs
from serve_app.service.repeats import Mark
from serve_app.telemetry import Event, Telemetry, TierRead
from tests.conftest import ValkeyServer
from tests.serve_app.service.rig import NOW, Clock, a_job, redis_jobs

ASKS = Mark("k" * 64, "d" * 64, 60.0, True)
TELLS = replace(ASKS, asks=False)


def done(job: Job) -> Job:
    return job.completed(Outcome.RENDERED, "miss", NOW + 9)


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[JobStore]:
    if request.param == "memory":
        yield MemoryJobs(clock=clock)
        return
    server: ValkeyServer = request.getfixturevalue("valkey_server")
    server.flush()
    events: list[Event] = []
    # a busy machine may keep Valkey waiting for most of a second
    made = redis_jobs(server.url, events, patience=20.0, clock=clock)
    yield made
    assert events == [], "nothing in the contract is an error of the tier"
    await made._redis.client.aclose()


async def listed(store: JobStore, order: Order = "asc") -> list[str]:
    return [job.id for job in (await store.page(after=None, limit=99, order=order)).jobs]


async def test_add_get_update_delete(store: JobStore) -> None:
    """A record is what was stored last; after deletion it is gone for good and says so."""
    job = a_job()
    assert await store.get(job.id) is None
    await store.add(job)
    assert await store.get(job.id) == job
    assert await store.update(done(job)) == done(job)
    assert await store.get(job.id) == done(job)
    assert await store.delete(job.id)
    with pytest.raises(NotFound, match="deleted"):
        await store.get(job.id)
    assert not await store.delete(job.id)


async def test_update_keeps_deletions_and_mends_losses(store: JobStore) -> None:
    """Updating a deleted job says so and leaves no record; one that the store lost (a restart) is stored anew."""
    job = a_job()
    assert await store.update(job) == job
    assert await store.get(job.id) == job
    assert await listed(store) == [job.id]
    assert await store.beat([job.id]) == []
    await store.delete(job.id)
    assert await store.update(job) is None
    assert await store.beat([job.id]) == [job.id]
    with pytest.raises(NotFound):
        await store.get(job.id)
    assert await listed(store) == []


async def test_an_end_is_never_changed(store: JobStore) -> None:
    """Of two followers the first tells the end; the other, and a paused one that thinks it goes on, hear of it."""
    job = a_job()
    await store.add(job)
    assert await store.update(done(job)) == done(job)
    for later in (job.started("hit"), job.failed("render_failed", "no", NOW)):
        assert await store.update(later) == done(job)
    assert await store.get(job.id) == done(job)
    assert await store.beat([job.id]) == [job.id]


async def test_add_after_delete_brings_nothing_back(store: JobStore) -> None:
    """A record that is written behind the answer, and comes after the deletion, stays deleted."""
    job = a_job()
    await store.delete(job.id)
    await store.add(job)
    with pytest.raises(NotFound):
        await store.get(job.id)
    assert await listed(store) == []


async def test_add_twice_is_add_once(store: JobStore) -> None:
    """Two readers of one receipt may both write its record: it is listed once, and one deletion removes it."""
    job = a_job()
    await store.add(job)
    await store.add(replace(job, prompt="other"), a_job(1))
    assert (await store.page(after=None, limit=9, order="asc")).jobs == (job, a_job(1))
    await store.delete(job.id)
    assert await listed(store) == [a_job(1).id]


async def test_a_repeat_is_answered_by_the_first_job(store: JobStore) -> None:
    """The job that left a mark answers it; the second job is not stored at all."""
    assert await store.recall(ASKS) is None
    assert await store.accept(a_job(1), ASKS) == "video_1"
    assert await store.recall(ASKS) == "video_1"
    assert await store.accept(a_job(2), ASKS) == "video_1"
    assert await listed(store) == ["video_1"]
    assert await store.claim(9) == ()
    assert await store.beat(["video_1", "video_2"]) == ["video_2"]


async def test_a_first_try_leaves_its_own_mark(store: JobStore) -> None:
    """Two requests that do not say they repeat are two jobs, and a retry after both gets the second one's."""
    assert await store.accept(a_job(1), TELLS) == "video_1"
    assert await store.recall(TELLS) is None
    assert await store.accept(a_job(2), TELLS) == "video_2"
    assert await store.accept(a_job(3), ASKS) == "video_2"
    assert await listed(store) == ["video_1", "video_2"]


async def test_a_key_with_other_fields_is_refused(store: JobStore) -> None:
    """Nothing is stored, and the first job stays the key's."""
    other = replace(ASKS, digest="e" * 64)
    await store.accept(a_job(1), ASKS)
    for call in (store.recall(other), store.accept(a_job(2), other)):
        with pytest.raises(KeyReused):
            await call
    assert await listed(store) == ["video_1"]
    assert await store.recall(ASKS) == "video_1"


async def test_a_job_that_answers_nobody_any_more_is_replaced(store: JobStore) -> None:
    """When the first job was deleted, one of those who try again makes the next, and all get that."""
    await store.accept(a_job(1), ASKS)
    instead = replace(ASKS, instead_of="video_1")
    assert await store.recall(instead) is None
    found = await asyncio.gather(*(store.accept(a_job(number), instead) for number in range(2, 6)))
    assert len(set(found)) == 1
    assert await listed(store) == ["video_1", found[0]]


async def test_of_many_tries_at_once_one_makes_the_job(store: JobStore) -> None:
    """Whoever comes first, all get the same job, and it is the only one."""
    found = await asyncio.gather(*(store.accept(a_job(number), ASKS) for number in range(20)))
    assert len(set(found)) == 1
    assert await listed(store) == [found[0]]


async def test_a_mark_is_forgotten(store: JobStore, clock: Clock) -> None:
    """After its time, or its job's, the same request is a new job."""
    for number, (mark, life) in enumerate([(replace(ASKS, seconds=0.05), 60.0), (replace(ASKS, name="j" * 64), 0.05)]):
        now = time.time()
        clock.now = now
        await store.accept(a_job(number, created_at=now, expires_at=now + life), mark)
        await asyncio.sleep(0.1)  # Valkey's own clock
        clock.now = time.time()
        assert await store.recall(mark) is None
        assert await store.accept(a_job(number + 10), mark) == f"video_{number + 10}"


async def test_beats_keep_jobs_from_being_orphans(store: JobStore, clock: Clock) -> None:
    """A job nobody spoke of for ORPHAN_SECONDS is claimed once; one that is followed, ended or deleted never."""
    for number in range(5):
        await store.accept(a_job(number), replace(TELLS, name=f"{number:064}"))
    clock.now += ORPHAN_SECONDS - 0.1
    assert await store.claim(9) == ()
    await store.update(done(a_job(2)))
    await store.delete("video_3")
    assert await store.beat(["video_1", "video_2", "video_3", "nobody"]) == ["video_2", "video_3", "nobody"]
    clock.now += 0.1
    assert {job.id for job in await store.claim(9)} == {"video_0", "video_4"}
    assert await store.claim(9) == ()
    clock.now += ORPHAN_SECONDS
    assert {job.id for job in await store.claim(9)} == {"video_0", "video_1", "video_4"}


async def test_an_update_is_a_beat(store: JobStore, clock: Clock) -> None:
    """Whoever writes a job's state follows it, so it is no orphan for another while."""
    await store.add(a_job())
    clock.now += ORPHAN_SECONDS - 0.1
    await store.update(a_job().started("hit"))
    clock.now += 0.2
    assert await store.claim(9) == ()


@pytest.mark.parametrize("step", [900.0, -900.0])
async def test_a_step_of_the_servers_clock_orphans_nobody_and_hides_no_orphan(
    store: JobStore, clock: Clock, step: float
) -> None:
    """Set back or forward, a dead router's job is claimed after five seconds, and one that is followed is not."""
    await store.add(a_job(1), a_job(2))
    await store.beat(["video_1", "video_2"])
    clock.now += step
    for second in range(8):
        await store.add(a_job(10 + second))  # written by the server's clock as it is now
        await store.beat(["video_1", *(f"video_{10 + number}" for number in range(second + 1))])
        claimed = [job.id for job in await store.claim(9)]
        assert claimed == (["video_2"] if second == 5 else []), second
        clock.now += 1
    clock.now -= step
    await store.claim(9)
    for _ in range(5):
        clock.now += 1
        claimed = [job.id for job in await store.claim(20)]
    assert "video_1" in claimed


async def test_claims_share_the_orphans(store: JobStore, clock: Clock) -> None:
    """Many who claim at once get each orphan once, no more than they can take, the longest silent first."""
    for number in range(10):
        await store.add(a_job(number))
        clock.now += 0.01
    clock.now += ORPHAN_SECONDS
    assert await store.claim(0) == ()
    assert [job.id for job in await store.claim(3)] == ["video_0", "video_1", "video_2"]
    claimed = await asyncio.gather(*(store.claim(2) for _ in range(5)))
    assert sorted(len(jobs) for jobs in claimed) == [0, 1, 2, 2, 2]
    assert {job.id for jobs in claimed for job in jobs} == {f"video_{number}" for number in range(3, 10)}


async def test_hits_are_never_orphans(store: JobStore, clock: Clock) -> None:
    """A job that was complete when it came needs no follower."""
    await store.add(done(a_job(1)))
    await store.accept(done(a_job(2)), ASKS)
    clock.now += ORPHAN_SECONDS * 2
    assert await store.claim(9) == ()
    assert await store.recall(ASKS) == "video_2"


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
    for after in ("video_2", "nobody", "", "/index", "\ud800"):
        with pytest.raises(NotFound):
            await store.page(after=after, limit=3, order="asc")


async def test_expired(store: JobStore, clock: Clock) -> None:
    """At its `expires_at` a job is unknown, through updates too; it is skipped in pages and cannot be written again."""
    clock.now = time.time()
    job = a_job(1, created_at=clock.now, expires_at=clock.now + 0.2)
    await store.add(job, a_job(2))
    assert await store.update(job.started("hit")) is not None
    await asyncio.sleep(0.25)  # Valkey's own clock
    clock.now = time.time()
    assert await store.get(job.id) is None
    assert await listed(store) == ["video_2"]
    assert await store.update(job) is None
    assert await store.get(job.id) is None
    clock.now += ORPHAN_SECONDS
    assert [orphan.id for orphan in await store.claim(9)] == ["video_2"]
    assert await store.beat([job.id]) == [job.id]


CALLS = st.sampled_from(["accept", "add", "start", "end", "fail", "beat", "claim", "get", "delete", "recall", "page"])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(CALLS, st.integers(0, 3), st.integers(0, 2), st.booleans(), st.floats(0, 4)), max_size=30))
def test_redis_does_what_memory_does(
    valkey_server: ValkeyServer, story: list[tuple[str, int, int, bool, float]]
) -> None:
    """Any sequence of calls and pauses has the same answers from the naive store and the real one."""
    clock = Clock(NOW)

    async def call(store: JobStore, verb: str, number: int, name: int, flag: bool) -> Any:
        job, mark = a_job(number), Mark(f"{name:064}", ("d" if number % 2 else "e") * 64, 3600.0, flag)
        calls: dict[str, Callable[[], Any]] = {
            "accept": lambda: store.accept(job, mark),
            "add": lambda: store.add(job, a_job(number + 1)),
            "start": lambda: store.update(job.started("hit")),
            "end": lambda: store.update(done(job)),
            "fail": lambda: store.update(job.failed("no", "no", NOW)),
            "beat": lambda: store.beat([job.id, f"video_{name}"]),
            "claim": lambda: store.claim(name),
            "get": lambda: store.get(job.id),
            "delete": lambda: store.delete(job.id),
            "recall": lambda: store.recall(mark),
            "page": lambda: store.page(after=job.id if flag else None, limit=name + 1, order="asc"),
        }
        try:
            return await calls[verb]()
        except EncoreError as error:
            return type(error), error.message

    async def compare() -> None:
        valkey_server.flush()
        naive, real = MemoryJobs(clock=clock), redis_jobs(valkey_server.url, [], patience=20.0, clock=clock)
        try:
            for verb, number, name, flag, pause in story:
                clock.now += round(pause, 3)
                expected = await call(naive, verb, number, name, flag)
                assert await call(real, verb, number, name, flag) == expected, (verb, number, name, flag)
        finally:
            await real._redis.client.aclose()

    asyncio.run(compare())


async def test_memory_is_bounded() -> None:
    """Beyond `max_jobs` the oldest record is forgotten, and so is the oldest tombstone."""
    store = MemoryJobs(max_jobs=3)
    for number in (4, 1, 3, 2, 0):
        await store.add(a_job(number))
    assert len(store) == 3
    assert await listed(store) == ["video_2", "video_3", "video_4"]
    assert await store.beat(["video_0", "video_2"]) == ["video_0"]
    for number in range(5):
        await store.delete(f"video_{number}")
    assert await store.get("video_0") is None
    with pytest.raises(NotFound):
        await store.get("video_4")
    assert len(store) == 0


async def test_names_are_secret_and_in_one_slot(valkey_server: ValkeyServer) -> None:
    """Under another secret the same server shows no job; no key holds an id, and all have the one hash tag."""
    valkey_server.flush()
    store = redis_jobs(valkey_server.url, [])
    await store.accept(a_job(1), ASKS)
    other = RedisJobs(store._redis, secret=b"another", telemetry=Telemetry())
    assert await other.get("video_1") is None
    assert await other.recall(ASKS) is None
    assert (await other.page(after=None, limit=9, order="asc")).jobs == ()
    names = await store._redis.client.keys("*")
    assert len(names) == 4
    assert not [name for name in names if b"video" in name or ASKS.name.encode() in name]
    assert {name.split(b":")[1] for name in names} == {b"{job}"}
    await store._redis.client.aclose()


async def test_accepted_is_kept(start_valkey: Callable[..., ValkeyServer]) -> None:
    """A job accepted a moment before Valkey is killed is there when it is back, with its mark, and is an orphan."""
    server, clock = start_valkey(persistent=True), Clock(NOW)
    store = redis_jobs(server.url, [], clock=clock)
    for round_ in range(5):
        mark = replace(ASKS, name=f"{round_:064}")
        await store.accept(a_job(round_), mark)
        server.kill()
        server.restart()
        await asyncio.sleep(0.05)  # the event loop was held up: only now it hears that its connections ended
        assert await store.get(f"video_{round_}") == a_job(round_)
        assert await store.recall(mark) == f"video_{round_}"
    clock.now += ORPHAN_SECONDS
    assert len(await store.claim(9)) == 5
    await store._redis.client.aclose()


async def test_without_redis_nothing_is_answered(start_valkey: Callable[..., ValkeyServer]) -> None:
    """With Valkey killed every call is Unavailable with a time to come back, and counted; after that it works again."""
    server, events = start_valkey(persistent=True), list[Event]()
    store = redis_jobs(server.url, events)
    await store.add(a_job(1))
    server.kill()
    calls: list[Callable[[], Any]] = [
        lambda: store.accept(a_job(2), ASKS), lambda: store.add(a_job(2)), lambda: store.update(a_job(1)),
        lambda: store.recall(ASKS), lambda: store.beat(["video_1"]), lambda: store.claim(1),
        lambda: store.get("video_1"), lambda: store.delete("video_1"),
        lambda: store.page(after=None, limit=9, order="asc"),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(Unavailable) as unavailable:
            await call()
        assert unavailable.value.retry_after is not None
    assert [(event.tier, event.kind, event.result) for event in events if isinstance(event, TierRead)] == [
        ("l2", "job", "error")
    ] * len(calls)
    assert store._circuit.reach.state == "open"
    server.restart()
    store._circuit.reach._opened_at = -1e9  # its five seconds are over
    assert await store.get("video_1") == a_job(1)
    assert await store.get("video_2") is None
    await store._redis.client.aclose()


async def test_not_found_is_an_answer(valkey_server: ValkeyServer) -> None:
    """However often somebody asks for what is not there, Redis is not left alone for it."""
    valkey_server.flush()
    events: list[Event] = []
    store = redis_jobs(valkey_server.url, events)
    await store.delete("video_1")
    for call in (lambda: store.get("video_1"), lambda: store.page(after="nobody", limit=1, order="asc")):
        for _ in range(5):
            with pytest.raises(NotFound):
                await call()
    assert await store.get("\ud800") is None
    assert (store._circuit.reach.state, events) == ("closed", [])
    await store._redis.client.aclose()


async def test_a_record_nobody_can_read(valkey_server: ValkeyServer) -> None:
    """A record of a release that we do not understand is skipped, and does not keep the others from being claimed."""
    valkey_server.flush()
    clock = Clock(NOW)
    store = redis_jobs(valkey_server.url, [], clock=clock)
    await store.add(a_job(1), a_job(2))
    await store._redis.client.set(store._name("video_1"), b'{"id": "video_1", "shape": "new"}')
    clock.now += ORPHAN_SECONDS
    assert [job.id for job in await store.claim(9)] == ["video_2"]
    assert await store.get("video_1") is None
    assert await listed(store) == ["video_2"]
    await store._redis.client.aclose()
