"""L2, flights, jobs, filter and messages on a real Valkey cluster of three nodes, one of which dies and comes back."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from serve_app.cache.cache import TieredCache
from serve_app.cache.redis.bloom import BloomFilter
from serve_app.cache.redis.bloom_builder import BloomBuilder
from serve_app.cache.redis.cluster import ClusterAddress, is_cluster
from serve_app.cache.redis.lease import Lease
from serve_app.cache.redis.pubsub import Subscriptions
from serve_app.cache.redis.redis import RedisTier
from serve_app.cache.storage_name import redis_name, storage_name
from serve_app.core import Entry, Outcome, Priority, Urgency
from serve_app.errors import TierError
from serve_app.flight.record import FlightState, FlightStatus, Found, Joined, Leading
from serve_app.flight.redis_record import RedisFlightRecords
from tests.serve_app.cache.frames import framed
from tests.serve_app.cache.redis.test_bloom import PATIENT, listing, name_of
from tests.serve_app.service.rig import SECRET, a_job, redis_jobs
from tests.valkey_cluster import ValkeyCluster

CALM = Urgency(Priority.WARM_UP)


@pytest.fixture(scope="module")
def started(valkey_binary: Path, short_tmp: Path) -> Iterator[ValkeyCluster]:
    cluster = ValkeyCluster(valkey_binary, Path(tempfile.mkdtemp(dir=short_tmp)))
    yield cluster
    cluster.close()


@pytest.fixture
def nodes(started: ValkeyCluster) -> ValkeyCluster:
    started.flush()
    return started


@pytest.fixture
async def tier(nodes: ValkeyCluster) -> AsyncIterator[RedisTier]:
    tier = RedisTier(nodes.url, **PATIENT)
    yield tier
    await tier.close()


def entry_of(number: int) -> Entry:
    return Entry.of(name_of(number), f"video {number}".encode(), {})


async def test_values_are_found_wherever_they_are(tier: RedisTier) -> None:
    """Forty videos over all nodes: stored, read and extended, listed as there, deleted."""
    cache = TieredCache("video", secret=SECRET, l2=tier)
    entries = [entry_of(number) for number in range(40)]
    for entry in entries:
        assert (await cache.put(entry)).tiers == ("l2",)
    assert [await cache.get(entry.key) for entry in entries] == [(entry, Outcome.L2) for entry in entries]
    assert await cache.where(entries[0].key) == {"l2": True}
    assert await cache.delete(entries[0].key) == ("l2",)
    assert await cache.get(entries[0].key) is None


async def test_a_flight_is_one_script_on_one_node(tier: RedisTier, nodes: ValkeyCluster) -> None:
    """Value, flight, waiters and Bloom bits of a key share a slot: joining, ending and finding take a script each."""
    bloom = BloomFilter(tier)
    await BloomBuilder(bloom, listing([]), Lease(tier, "bloom")).build()
    flights = RedisFlightRecords(tier, secret=SECRET, linger_seconds=1, bloom=bloom)
    before = nodes.commands("evalsha")
    for number in range(20):
        entry = entry_of(number)
        leading = await flights.join_or_lead(entry.key, "one", CALM)
        assert isinstance(leading, Leading)
        assert not leading.may_have
        assert isinstance(await flights.join_or_lead(entry.key, "two", CALM), Joined)
        await flights.beat(entry.key, leading.token, FlightStatus(leading.token, FlightState.RENDERING, 1, 4))
        assert await flights.complete(entry.key, leading.token, framed(entry, secret=SECRET), "")
        found = await flights.join_or_lead(entry.key, "two", CALM)
        assert isinstance(found, Found)
        assert found.frame == framed(entry, secret=SECRET)
    sent_again = 3 * 3  # a node that does not know a script's text is sent it once
    assert nodes.commands("evalsha") - before <= 20 * 5 + sent_again
    await flights.aclose()


async def test_news_reach_who_listens_at_another_node(tier: RedisTier) -> None:
    """What a script publishes on a key's node is heard by a subscriber of any node."""
    flights = RedisFlightRecords(tier, secret=SECRET, linger_seconds=1)
    heard: dict[str, list[int]] = {}
    keys = [name_of(number) for number in range(12)]
    for key in keys:
        flights.watch(key, lambda news, key=key: heard.setdefault(key, []).append(news.step))  # type: ignore[misc]
    tokens = {}
    for key in keys:
        leading = await flights.join_or_lead(key, "one", CALM)
        assert isinstance(leading, Leading)
        tokens[key] = leading.token
    step = 0
    async with asyncio.timeout(30):
        while set(heard) != set(keys):  # the subscription takes a moment
            step += 1
            for key, token in tokens.items():
                await flights.beat(key, token, FlightStatus(token, FlightState.RENDERING, step, 99))
            await asyncio.sleep(0.02)
    await flights.aclose()


async def test_jobs_live_in_one_slot(nodes: ValkeyCluster) -> None:
    """Records, list and marks of jobs are touched by one script, so they share a slot."""
    jobs = redis_jobs(nodes.url, [], patience=5)
    job = a_job(1)
    await jobs.add(job, a_job(2))
    assert await jobs.get(job.id) == job
    page = await jobs.page(after=None, limit=10, order="asc")
    assert [each.id for each in page.jobs] == ["video_1", "video_2"]
    assert await jobs.delete(job.id)
    await jobs._redis.close()


async def test_a_dead_node_takes_its_own_keys_and_no_others(nodes: ValkeyCluster) -> None:
    """With one node killed its videos are misses, all others are found; when it is back everything works again."""
    tier = RedisTier(nodes.url, connect_timeout=0.5, socket_timeout=0.5)
    names = [storage_name(SECRET, "video", name_of(number)) for number in range(30)]
    for name in names:
        await tier.set(redis_name(name), b"value")
    dead = 2
    on_dead = {name for name in names if nodes.node_of(redis_name(name)) == dead}
    living = next(name for name in names if name not in on_dead)
    assert on_dead
    nodes.kill(dead)
    try:
        for _ in range(2):  # before the others have noticed, and after
            for name in names:
                if name in on_dead:
                    with pytest.raises(TierError):
                        await tier.get(redis_name(name))
                else:
                    assert await tier.get(redis_name(name)) == b"value"
            await asyncio.sleep(2.5)
        wire, heard = Subscriptions(tier.new_client), asyncio.Event()
        wire.subscribe("here", lambda _: heard.set())
        async with asyncio.timeout(30):
            while not heard.is_set():
                await tier.client.eval("return redis.call('PUBLISH', 'here', 'news')", 1, redis_name(living))
                await asyncio.sleep(0.05)
        await wire.aclose()
    finally:
        nodes.start(dead)
        nodes.wait_until_whole()
    async with asyncio.timeout(30):
        while True:
            try:
                for name in on_dead:
                    await tier.set(redis_name(name), b"again")
                    assert await tier.get(redis_name(name)) == b"again"
                break
            except TierError:
                await asyncio.sleep(0.2)
    await tier.close()


def test_an_address_names_nodes_and_a_login() -> None:
    """Hosts with and without ports, IPv6, user and password with escapes, TLS."""
    address = ClusterAddress.parse("rediss+cluster://me:p%40ss@one:7000,[::1]:7001,two")
    assert address.nodes == (("one", 7000), ("::1", 7001), ("two", 6379))
    assert address.options == {"username": "me", "password": "p@ss", "ssl": True}
    assert [is_cluster(url) for url in ("redis+cluster://a", "redis://a", "unix:///a")] == [True, False, False]


@pytest.mark.parametrize("url", ["redis+cluster://", "redis+cluster://a:b", "redis+cluster://a/3", "redis://a"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    """A cluster has hosts, ports that are numbers, and one database."""
    with pytest.raises(ValueError, match=r"cluster|port"):
        ClusterAddress.parse(url)


def test_an_address_keeps_its_query() -> None:
    """Parameters after a `?` reach the connections as they do with a single server, and none shows the password."""
    address = ClusterAddress.parse(
        "rediss+cluster://user:p%40ss@one:7000,two?ssl_ca_certs=%2Fetc%2Fa%20ca.pem&ssl_check_hostname=no&socket_timeout=3"
    )
    assert address.nodes == (("one", 7000), ("two", 6379))
    told = {"ssl": True, "ssl_ca_certs": "/etc/a ca.pem", "ssl_check_hostname": False, "socket_timeout": 3.0}
    assert told.items() <= address.options.items()
    assert "p@ss" not in repr(address)
    cluster = address.connect(socket_timeout=1.0)
    assert cluster.connection_kwargs["ssl_ca_certs"] == "/etc/a ca.pem"
    assert cluster.connection_kwargs["socket_timeout"] == 3.0
    with pytest.raises(ValueError, match="only database 0"):
        ClusterAddress.parse("redis+cluster://one?db=1")
