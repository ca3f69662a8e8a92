"""One contract for job records, in memory and in a real Valkey; the two against each other; and Valkey's deaths."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.cache.redis.redis import RedisTier
from serve_app.core import Outcome
from serve_app.errors import Busy, EncoreError, KeyReused, NotFound, Unavailable
from serve_app.service.jobs.idempotency import Mark
from serve_app.service.jobs.job import Job, Order
from serve_app.service.jobs.redis_store import RedisJobs
from serve_app.service.jobs.signed_id import issue, new_job_id
from serve_app.service.jobs.store import ORPHAN_SECONDS, JobStore, MemoryJobs
from serve_app.telemetry import Event, Telemetry, TierRead
from tests.conftest import ValkeyServer
from tests.serve_app.service.rig import NOW, SECRET, Clock, a_job, redis_jobs

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
    """Deleted jobs are skipped, pages stay full, and an `after` that nobody knows is NotFound."""
    for number in range(8):
        await store.add(a_job(number))
    for number in (0, 2, 3, 6):
        await store.delete(f"video_{number}")
    page = await store.page(after=None, limit=3, order="asc")
    assert [job.id for job in page.jobs] == ["video_1", "video_4", "video_5"]
    assert page.has_more
    for after in ("nobody", "", "/index", "\ud800"):
        with pytest.raises(NotFound):
            await store.page(after=after, limit=3, order="asc")


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_deleting_all_that_is_listed(store: JobStore, order: Order) -> None:
    """Who deletes each job of a page and asks for the next one after it meets every job once, in order."""
    jobs = [a_job(number) for number in range(7)]
    await store.add(*jobs)
    met: list[Job] = []
    while (page := await store.page(after=met[-1].id if met else None, limit=2, order=order)).jobs:
        for job in page.jobs:
            met.append(job)
            assert await store.delete(job.id)
    assert met == (jobs if order == "asc" else jobs[::-1])


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_going_on_after_what_was_swept(store: JobStore, order: Order) -> None:
    """An id says when its job was made, a hit's too: one that is gone without a trace is still a place in the list."""
    await store.add(*(a_job(number) for number in range(4)))
    for gone in (new_job_id(NOW + 1.5), issue(SECRET, "ab" * 32, NOW + 1.5)):
        page = await store.page(after=gone, limit=9, order=order)
        expected = ["video_2", "video_3"] if order == "asc" else ["video_1", "video_0"]
        assert [job.id for job in page.jobs] == expected


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


@pytest.fixture(params=["memory", "redis"])
async def small(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Callable[..., JobStore]]:
    """A function that opens a store of so many records and bytes."""
    made: list[RedisJobs] = []

    def opened(max_count: int = 100, max_bytes: int = 1 << 30) -> JobStore:
        if request.param == "memory":
            return MemoryJobs(max_count, clock, max_bytes=max_bytes)
        server: ValkeyServer = request.getfixturevalue("valkey_server")
        server.flush()
        tier = RedisTier(server.url, socket_timeout=20.0, deadline=60.0)
        bounds = {"max_count": max_count, "max_bytes": max_bytes}
        made.append(RedisJobs(tier, secret=SECRET, telemetry=Telemetry(), clock=clock, **bounds))  # type: ignore[arg-type]
        return made[-1]

    yield opened
    for each in made:
        await each._redis.client.aclose()


async def test_finished_jobs_go_first_and_unfinished_ones_never(small: Callable[..., JobStore]) -> None:
    """Beyond the count the oldest finished record goes; when unfinished ones fill it a new one is refused at once."""
    store = small(3)
    for number in range(5):
        await store.accept(a_job(number), replace(TELLS, name=f"{number:064}"))
        if number < 3:
            await store.update(done(a_job(number)))
    assert await listed(store) == ["video_2", "video_3", "video_4"]
    await store.accept(a_job(5), replace(TELLS, name=f"{5:064}"))
    assert await listed(store) == ["video_3", "video_4", "video_5"]
    with pytest.raises(Busy, match="jobs_max_count") as busy:
        await store.accept(a_job(6), ASKS)
    assert busy.value.retry_after is not None
    assert await store.recall(ASKS) is None
    assert await listed(store) == ["video_3", "video_4", "video_5"]
    await store.update(done(a_job(4)))
    assert await store.accept(a_job(6), ASKS) == "video_6"
    assert await listed(store) == ["video_3", "video_5", "video_6"]


async def test_bytes_are_bounded_too(small: Callable[..., JobStore]) -> None:
    """So are the bytes of records: of finished ones the oldest go, of unfinished ones a new one is refused."""
    store = small(max_bytes=20_000)
    large = [a_job(number, prompt="x" * 5_000) for number in range(8)]
    for job in large[:5]:
        await store.accept(job, replace(TELLS, name=job.id.rjust(64)))
        await store.update(done(job))
    assert await listed(store) == ["video_2", "video_3", "video_4"]
    for job in large[5:]:
        await store.accept(job, replace(TELLS, name=job.id.rjust(64)))
    assert await listed(store) == ["video_5", "video_6", "video_7"]
    with pytest.raises(Busy):
        await store.accept(a_job(9, prompt="x" * 5_000), ASKS)


async def test_hits_have_a_share_of_their_own(small: Callable[..., JobStore]) -> None:
    """However many hits are filed, no job's record or mark goes for them, and the newest hits are listed."""
    store = small(3)
    await store.accept(a_job(0), ASKS)
    await store.accept(a_job(1), replace(TELLS, name="1" * 64))
    await store.update(done(a_job(1)))
    for number in range(10, 20):
        await store.accept(done(a_job(number)), replace(ASKS, name=f"{number:064}"))
    await store.add(*(done(a_job(number)) for number in range(20, 40)))
    assert await listed(store) == ["video_0", "video_1", "video_37", "video_38", "video_39"]
    assert await store.recall(ASKS) == "video_0"
    assert await store.accept(a_job(2), TELLS) == "video_2"


async def test_a_deletion_is_remembered_however_many_there_are(small: Callable[..., JobStore]) -> None:
    """Beyond the count tombstones are one: all jobs made up to then, whose ids say so, count as deleted."""
    store = small(3)
    hits = [replace(done(a_job()), id=issue(SECRET, "ab" * 32, NOW + n), created_at=NOW + n) for n in range(9)]
    for hit in hits[:8]:
        await store.add(hit)
        assert await store.delete(hit.id)
    await store.add(*hits)
    for hit in hits[:8]:
        with pytest.raises(NotFound, match="deleted"):
            await store.get(hit.id)
        assert await store.update(hit) is None
    assert await listed(store) == [hits[8].id]


async def test_what_is_old_is_swept(small: Callable[..., JobStore], clock: Clock) -> None:
    """What has expired counts as absent at once and is removed by a sweep, once: records, marks and tombstones."""
    store = small(2000)
    await store.accept(a_job(0), replace(ASKS, seconds=9.0))
    await store.add(*(done(a_job(number)) for number in range(1, 1500)))
    await store.delete("video_1499")
    assert await store.sweep() == 0
    clock.now += 9.5
    assert await store.recall(ASKS) is None
    assert await store.sweep() == 1
    clock.now = NOW + 3600 + 1498.5
    assert await store.get("video_0") is None
    assert (await store.page(after=None, limit=9, order="asc")).jobs == ()
    assert await store.sweep() == 1499
    assert await store.sweep() == 0
    clock.now = NOW + 40 * 86_400
    assert await store.sweep() == 1
    assert await store.beat(["video_0"]) == ["video_0"]


async def test_nothing_is_left_over(valkey_server: ValkeyServer) -> None:
    """When all is deleted, forgotten and expired, Redis holds no more than a few sums."""
    valkey_server.flush()
    clock = Clock(NOW)
    store = redis_jobs(valkey_server.url, [], clock=clock)
    for number in range(20):
        await store.accept(a_job(number) if number % 2 else done(a_job(number)), replace(TELLS, name=f"{number:064}"))
    await store.update(done(a_job(1)))
    for number in range(0, 20, 3):
        await store.delete(f"video_{number}")
    clock.now += 90 * 86_400
    await store.sweep()
    client = store._redis.client
    assert await client.keys("*") == [store._names[-1].encode()]
    assert {int(value) for value in (await client.hgetall(store._names[-1])).values()} == {0}
    await client.aclose()


async def test_nothing_has_a_ttl(valkey_server: ValkeyServer) -> None:
    """No key that holds records can be used by an eviction policy."""
    valkey_server.flush()
    store = redis_jobs(valkey_server.url, [])
    await store.accept(a_job(0), ASKS)
    await store.accept(done(a_job(1)), replace(ASKS, name="2" * 64))
    await store.update(done(a_job(0)))
    await store.delete("video_1")
    client = store._redis.client
    assert {await client.pttl(name) for name in await client.keys("*")} == {-1}
    await client.aclose()


async def test_a_page_costs_what_is_on_it(valkey_server: ValkeyServer) -> None:
    """With thousands of hits, most of them deleted, a page is one command, wherever it begins."""
    valkey_server.flush()
    store = redis_jobs(valkey_server.url, [], patience=20.0, clock=Clock(NOW))
    ids = [f"video_{number}" for number in range(3000)]
    for first in range(0, 3000, 500):
        await store.add(*(done(a_job(number)) for number in range(first, first + 500)))
    for job_id in ids[:1000] + ids[2000:]:
        await store.delete(job_id)
    client = store._redis.client
    assert isinstance(client, redis.asyncio.Redis)
    for after in (None, ids[0], ids[999], ids[1500], ids[2999]):
        for order in ("asc", "desc"):
            await store.page(after=after, limit=20, order=order)  # type: ignore[arg-type]
            before = (await client.info("commandstats"))["cmdstat_evalsha"]["calls"]
            page = await store.page(after=after, limit=20, order=order)  # type: ignore[arg-type]
            after_it = (await client.info("commandstats"))["cmdstat_evalsha"]["calls"]
            assert after_it - before == 1
            assert page.jobs or (after, order) in ((ids[0], "desc"), (ids[999], "desc"), (ids[2999], "asc"))
    await client.aclose()


async def test_accepts_at_once_are_one_write(valkey_server: ValkeyServer) -> None:
    """What comes while one write is under way goes together in the next; each gets its own answer."""
    valkey_server.flush()
    store = redis_jobs(valkey_server.url, [], patience=20.0)
    client = store._redis.client
    assert isinstance(client, redis.asyncio.Redis)
    await store.accept(a_job(0), ASKS)
    before = (await client.info("commandstats"))["cmdstat_evalsha"]["calls"]
    marks = [replace(ASKS, name=f"{number // 2:064}") for number in range(60)]
    found = await asyncio.gather(
        *(store.accept(a_job(number + 1), mark) for number, mark in enumerate(marks)),
        store.accept(a_job(99), replace(ASKS, digest="f" * 64)),
        return_exceptions=True,
    )
    assert (await client.info("commandstats"))["cmdstat_evalsha"]["calls"] - before == 1
    assert found[:-1] == [f"video_{number // 2 * 2 + 1}" for number in range(60)]
    assert isinstance(found[-1], KeyReused)
    await client.aclose()


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
    assert len(names) == 7
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
    await store._redis.client.hset(store._names[0], "video_1", b'{"id": "video_1", "shape": "new"}')
    clock.now += ORPHAN_SECONDS
    assert [job.id for job in await store.claim(9)] == ["video_2"]
    assert await store.get("video_1") is None
    assert await listed(store) == ["video_2"]
    await store._redis.client.aclose()
