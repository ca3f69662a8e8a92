"""What was accepted survives floods: small Valkeys that also hold L2's values, under every policy that is allowed."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from serve_app.cache.redis.redis import RESERVE, RedisTier
from serve_app.core import Outcome
from serve_app.errors import Busy, EncoreError, InvalidRequest, TierError, Unavailable
from serve_app.service.jobs.idempotency import Mark
from serve_app.service.jobs.job import Job
from serve_app.service.jobs.records_server import RecordsServer, judged, same_server
from serve_app.service.jobs.redis_input_images import RedisInputImages
from serve_app.service.jobs.redis_store import RedisJobs
from serve_app.service.jobs.signed_id import issue
from serve_app.settings import Settings
from serve_app.telemetry import Telemetry
from serve_app.wiring.router import open_records
from serve_app.wiring.tiers import open_tiers
from tests.conftest import ValkeyServer
from tests.serve_app.service.rig import NOW, SECRET, a_job
from tests.valkey_cluster import ValkeyCluster

POLICIES = ["noeviction", "volatile-lru", "volatile-ttl", "volatile-random"]
PNG = b"\x89PNG" + bytes(30_000)


class World:
    """One server of `megabytes` that holds L2 and records."""

    def __init__(self, server: ValkeyServer) -> None:
        self.l2 = RedisTier(server.url, reserve=RESERVE, socket_timeout=20.0, deadline=60.0)
        self.jobs = RedisJobs(self.l2, secret=SECRET, telemetry=Telemetry())
        self.images = RedisInputImages(self.l2, secret=SECRET, telemetry=Telemetry())

    async def write_values(self, count: int, size: int = 100_000) -> dict[str, int]:
        """Write L2 values; return how many were written and how many were not, by why."""
        results: dict[str, int] = {}
        for number in range(count):
            try:
                await self.l2.set(f"encore:value:{number}", bytes(size), ttl=3600)
                result = "stored"
            except TierError as error:
                result = error.code
            results[result] = results.get(result, 0) + 1
        return results


@pytest.fixture
async def small(start_valkey: Callable[..., ValkeyServer]) -> AsyncIterator[Callable[[str, str], World]]:
    """A function that starts a Valkey with so much memory and such a policy."""
    worlds: list[World] = []

    def world(policy: str, memory: str) -> World:
        worlds.append(World(start_valkey("--maxmemory", memory, "--maxmemory-policy", policy)))
        return worlds[-1]

    yield world
    for each in worlds:
        await each.l2.client.aclose()


def mark(number: int) -> Mark:
    return Mark(f"{number:064}", "d" * 64, 86_400.0, True)


def hit(number: int) -> Job:
    created = round(NOW + number / 1000, 6)
    job = a_job(id=issue(SECRET, "ab" * 32, created), created_at=created, expires_at=created + 3600)
    return job.completed(Outcome.L1, None, NOW)


async def _refusal(accepting: Awaitable[str]) -> type[EncoreError] | None:
    try:
        await accepting
    except EncoreError as error:
        return type(error)
    return None


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_flood_of_values_takes_nothing_that_was_accepted(
    small: Callable[[str, str], World], policy: str
) -> None:
    """50 jobs with marks and pictures on 40 MB, then 1,500 L2 writes: all are there, and new jobs are accepted."""
    world = small(policy, "40mb")
    keys = [f"{number:064x}" for number in range(50)]
    for number, key in enumerate(keys):
        await world.images.keep(key, f"video_{number}", PNG, 3600)
        await world.jobs.accept(a_job(number), mark(number))
    await world.jobs.delete("video_49")
    results = await world.write_values(1500)
    assert results["stored"] > 200
    assert set(results) <= {"stored", "tier_full"}
    assert ("tier_full" in results) is (policy == "noeviction")
    page = await world.jobs.page(after=None, limit=100, order="asc")
    assert [job.id for job in page.jobs] == [f"video_{number}" for number in range(49)]
    assert [await world.jobs.recall(mark(number)) for number in range(50)] == [f"video_{n}" for n in range(50)]
    assert [await world.images.find(key) for key in keys] == [PNG] * 50
    assert await world.jobs.beat([job.id for job in page.jobs]) == []
    await world.jobs.add(a_job(49))
    assert (await world.jobs.page(after=None, limit=100, order="asc")).jobs == page.jobs
    for number in range(50, 80):
        await world.images.keep(f"{number:064x}", f"video_{number}", PNG, 3600)
        assert await world.jobs.accept(a_job(number), mark(number)) == f"video_{number}"


@pytest.mark.parametrize("policy", ["noeviction", "volatile-lru"])
async def test_a_flood_of_hits_takes_no_job(small: Callable[[str, str], World], policy: str) -> None:
    """On 6 MB, 2,000 hits, some with keys of their own: earlier jobs are there, new ones come, memory is bounded."""
    world = small(policy, "6mb")
    for number in range(20):
        await world.jobs.accept(a_job(number), mark(number))
    await world.write_values(100)
    hits = [hit(number) for number in range(2_000)]
    for first in range(0, 2_000, 100):
        await world.jobs.add(*hits[first : first + 60])
        await asyncio.gather(
            *(world.jobs.accept(hits[number], mark(10**6 + number)) for number in range(first + 60, first + 100))
        )
    for number in range(20, 60):
        assert await world.jobs.accept(a_job(number), mark(number)) == f"video_{number}"
    assert [(await world.jobs.get(f"video_{number}")) for number in range(60)] == [a_job(n) for n in range(60)]
    assert [await world.jobs.recall(mark(number)) for number in range(60)] == [f"video_{n}" for n in range(60)]
    assert (await world.jobs.get(hits[-1].id)) == hits[-1]
    info = await world.l2.ask(lambda client: client.info("memory"))
    assert info["used_memory"] < 6 << 20
    assert 60 < await world.l2.ask(lambda client: client.zcard(world.jobs._names[1])) < 2_000


async def test_full_of_unfinished_jobs(small: Callable[[str, str], World]) -> None:
    """On a server that evicts nothing, jobs are refused with a 429 before it is out of memory; none is dropped."""
    world = small("noeviction", "4mb")
    jobs = [a_job(number, prompt="x" * 20_000) for number in range(150)]
    answers = [await _refusal(world.jobs.accept(job, mark(number))) for number, job in enumerate(jobs)]
    accepted = answers.count(None)
    assert answers == [None] * accepted + [Busy] * (150 - accepted)
    assert 50 < accepted < 150
    assert [await world.jobs.get(f"video_{number}") is not None for number in range(accepted)] == [True] * accepted
    for number in range(10):
        await world.jobs.update(a_job(number).failed("no", "no", NOW))
    await world.jobs.accept(a_job(accepted), mark(accepted))
    assert await world.jobs.get(f"video_{accepted}") is not None


async def test_finished_jobs_make_room_for_new_ones(small: Callable[[str, str], World]) -> None:
    """On a small server however many jobs come and end, a new one is accepted and the newest are kept."""
    world = small("noeviction", "4mb")
    for number in range(300):
        job = a_job(number, prompt="x" * 20_000)
        await world.jobs.accept(job, mark(number))
        await world.jobs.update(job.failed("no", "no", NOW))
    newest = (await world.jobs.page(after=None, limit=20, order="desc")).jobs
    assert [job.id for job in newest] == [f"video_{number}" for number in range(299, 279, -1)]


async def test_values_stop_before_records_need_the_room(small: Callable[[str, str], World]) -> None:
    """On a server that evicts nothing values stop at four fifths of it, as what is no failure of the tier."""
    world = small("noeviction", "20mb")
    results = await world.write_values(300)
    assert set(results) == {"stored", "tier_full"}
    info = await world.l2.ask(lambda client: client.info("memory"))
    assert 0.75 * (20 << 20) < info["used_memory"] < 0.83 * (20 << 20)


@pytest.mark.parametrize(
    ("policy", "refused"),
    [
        ("noeviction", False),
        ("volatile-lru", False),
        ("volatile-ttl", False),
        ("allkeys-lru", True),
        ("allkeys-lfu", True),
    ],
)
async def test_a_server_that_evicts_records_is_refused_at_the_start(
    start_valkey: Callable[..., ValkeyServer], policy: str, refused: bool
) -> None:
    """The error names the setting, the line to change and the other way; any policy that spares records is fine."""
    server = start_valkey("--maxmemory-policy", policy)
    for settings in (Settings(redis_url=server.url), Settings(jobs_url=server.url)):
        tiers = open_tiers(settings, Telemetry())
        name = "redis_url" if settings.redis_url else "jobs_url"
        if refused:
            with pytest.raises(InvalidRequest, match="CONFIG SET maxmemory-policy volatile-lru") as error:
                open_records(settings, tiers, Telemetry())
            assert (error.value.param, "jobs_url" in error.value.message) == (name, True)
        else:
            records = open_records(settings, tiers, Telemetry())
            assert await records.jobs.accept(a_job(), mark(0)) == "video_0"
            if records.aclose is not None:
                await records.aclose()
        if tiers.l2 is not None:
            await tiers.l2.client.aclose()


async def test_a_server_that_is_away_at_the_start_is_checked_when_it_answers(
    start_valkey: Callable[..., ValkeyServer],
) -> None:
    """The start goes on; once the server answers and would evict records, no job is accepted until it is changed."""
    server = start_valkey("--maxmemory-policy", "allkeys-lru")
    server.kill()
    settings = Settings(jobs_url=server.url)
    records = open_records(settings, open_tiers(settings, Telemetry()), Telemetry())
    server.restart()
    with pytest.raises(Unavailable, match="maxmemory-policy"):
        await records.jobs.accept(a_job(), mark(0))
    assert isinstance(records.jobs, RedisJobs)
    await records.jobs._redis.client.config_set("maxmemory-policy", "volatile-lru")
    assert await records.jobs.accept(a_job(), mark(0)) == "video_0"
    assert records.aclose is not None
    await records.aclose()


async def test_a_server_that_forbids_config_is_warned_of_once(
    start_valkey: Callable[..., ValkeyServer], caplog: pytest.LogCaptureFixture
) -> None:
    """Managed servers forbid CONFIG, by another name or by ACL: one warning, no refusal."""
    acl = ("--user", "default", "on", "nopass", "~*", "&*", "+@all", "-config")
    for options in (("--rename-command", "CONFIG", ""), acl):
        server = start_valkey(*options, "--maxmemory-policy", "allkeys-lru")
        caplog.clear()
        known = RecordsServer(server.url, "jobs_url", 20.0)
        with caplog.at_level(logging.WARNING):
            known.check_at_start()
            known.check_at_start()
        assert known.refusal is None
        assert len(caplog.messages) == 1
        assert "forbids CONFIG" in caplog.text
        assert "allkeys-lru" in caplog.text


async def test_every_primary_of_a_cluster_is_asked(valkey_binary: Path, short_tmp: Path) -> None:
    """One primary of three with another policy is enough for a refusal."""
    cluster = ValkeyCluster(valkey_binary, Path(tempfile.mkdtemp(dir=short_tmp)))
    try:
        RecordsServer(cluster.url, "jobs_url", 20.0).check_at_start()
        tier = RedisTier(cluster.url)
        await tier.client.initialize()
        await tier.client.config_set("maxmemory-policy", "allkeys-random", target_nodes=tier.client.get_primaries()[-1])
        await tier.client.aclose()
        with pytest.raises(InvalidRequest, match="allkeys-random"):
            RecordsServer(cluster.url, "jobs_url", 20.0).check_at_start()
    finally:
        cluster.close()


def test_a_server_without_a_disk_is_warned_of() -> None:
    """Neither an append-only file nor snapshots: accepted jobs are lost with a restart."""
    found = judged({"maxmemory-policy": "noeviction", "appendonly": "no", "save": ""}, "jobs_url")
    assert found.refusal is None
    assert "appendonly yes" in found.warnings[0]
    assert judged({"maxmemory-policy": "noeviction", "appendonly": "no", "save": "3600 1"}, "jobs_url").warnings == ()
    assert judged({"maxmemory-policy": "volatile-lru", "appendonly": "yes", "save": ""}, "jobs_url").warnings == ()
    assert "volatile-lru is better" in judged({"maxmemory-policy": "volatile-ttl"}, "jobs_url").warnings[0]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("redis://a:6379/0", "redis://:secret@a/1", True),
        ("redis://a:6379", "redis://a:6380", False),
        ("unix:///tmp/a.sock", "unix:///tmp/a.sock?db=2", True),
        ("unix:///tmp/a.sock", "unix:///tmp/b.sock", False),
        ("redis+cluster://a:1,b:2", "redis+cluster://b:2,c:3", True),
        ("redis+cluster://a:1", "redis://b:1", False),
    ],
)
def test_what_one_memory_is(one: str, other: str, same: bool) -> None:
    """Another database or login of a server shares its memory, so L2's values leave room for the records there."""
    assert same_server(one, other) is same
    tiers = open_tiers(Settings(redis_url=one).model_copy(update={"jobs_url": other}), Telemetry())
    assert tiers.l2 is not None
    assert tiers.l2.reserve == (RESERVE if same else 0)
