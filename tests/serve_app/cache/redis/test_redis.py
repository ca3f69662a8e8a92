"""L2 on a real Valkey: the TTL really moves, and a server that is dead, silent or mad costs little time."""

from __future__ import annotations

import time

import pytest
from aiocache.plugins import HitMissRatioPlugin
from redis.asyncio import SSLConnection

from serve_app.cache.redis.redis import WEEK, RedisTier
from serve_app.errors import TierError


@pytest.fixture
async def tier(valkey_url):
    """A tier on the shared Valkey, jitter off."""
    tier = RedisTier(valkey_url, jitter=0)
    yield tier
    await tier.close()


async def commands(tier: RedisTier) -> dict[str, int]:
    """How often the server ran which command."""
    stats = await tier.client.info("commandstats")
    return {name.removeprefix("cmdstat_"): values["calls"] for name, values in stats.items()}


async def test_a_read_extends_the_ttl(tier: RedisTier) -> None:
    """A value is kept for seven days since its last use: reading sets the TTL back to the full time."""
    await tier.set("k", b"v")
    assert WEEK * 1000 - 10_000 < await tier.client.pttl("k") <= WEEK * 1000
    await tier.client.pexpire("k", 5000)
    assert await tier.get("k") == b"v"
    assert await tier.client.pttl("k") > WEEK * 1000 - 10_000


async def test_a_read_is_one_round_trip(tier: RedisTier) -> None:
    """One EVALSHA is all that a read sends, hit or miss."""
    await tier.set("k", b"v")
    await tier.get("k")
    before = await commands(tier)
    for key in ("k", "missing", "k"):
        await tier.get(key)
    after = await commands(tier)
    sent = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    assert (sent.pop("evalsha"), sent.pop("get")) == (3, 3)
    assert set(sent) <= {"pttl", "pexpire", "info"}  # the first two run inside the script, INFO is this test's own


async def test_a_read_never_shortens_the_ttl(tier: RedisTier) -> None:
    """A TTL longer than ours stays, and a value kept for ever is still kept for ever."""
    await tier.client.set("long", b"v", px=int(3 * WEEK * 1000))
    await tier.client.set("for ever", b"v")
    await tier.get("long")
    await tier.get("for ever")
    assert await tier.client.pttl("long") > 2 * WEEK * 1000
    assert await tier.client.pttl("for ever") == -1


@pytest.mark.parametrize(("draw", "share"), [(0.0, 0.9), (0.5, 1.0), (0.999, 1.1)])
async def test_ttls_are_spread(valkey_url: str, draw: float, share: float) -> None:
    """The TTL is ±10 % around the one asked for, on writing and on reading."""
    tier = RedisTier(valkey_url, ttl=1000, uniform=lambda: draw)
    await tier.set("k", b"v")
    assert await tier.client.pttl("k") == pytest.approx(1_000_000 * share, rel=0.01)
    await tier.client.pexpire("k", 5000)
    await tier.get("k")
    assert await tier.client.pttl("k") == pytest.approx(1_000_000 * share, rel=0.01)
    await tier.close()


async def test_a_value_over_the_bound_is_refused(valkey_url: str) -> None:
    """`set` says False above max_value_bytes and nothing is stored."""
    tier = RedisTier(valkey_url, max_value_bytes=100)
    assert await tier.set("k", b"x" * 100) is True
    assert await tier.set("big", b"x" * 101) is False
    assert await tier.exists("big") is False
    await tier.close()


async def test_it_is_an_aiocache_backend(valkey_url: str) -> None:
    """aiocache's public methods work on it, with plugins, per-call timeouts and namespaces."""
    tier = RedisTier(valkey_url, plugins=[HitMissRatioPlugin()], namespace="encore:")
    assert await tier.set("a", b"1", timeout=1)
    assert await tier.multi_set([("b", b"2"), ("c", b"3")])
    assert await tier.multi_get(["a", "z", "c"]) == [b"1", None, b"3"]
    assert await tier.get("a", timeout=1) == b"1"
    with pytest.raises(ValueError, match="exists"):
        await tier.add("a", b"other")
    assert await tier.add("new", b"4")
    assert await tier.expire("new", 50)
    assert 40_000 < await tier.client.pttl("encore:new") < 60_000
    assert await tier.expire("new", 0)
    assert await tier.client.pttl("encore:new") == -1
    assert (await tier.delete("a"), await tier.delete("a")) == (1, 0)
    assert tier.hit_miss_ratio["hits"] == 3
    await tier.client.set("somebody else's", b"x")
    await tier.clear(namespace="encore:")
    assert await tier.client.keys() == [b"somebody else's"]
    with pytest.raises(ValueError, match="namespace"):
        await tier.clear()
    await tier.close()


async def test_it_survives_a_restart_of_the_server(start_valkey) -> None:
    """Dead server: TierError at once; started again (scripts and connections forgotten): works without help."""
    server = start_valkey()
    tier = RedisTier(server.url)
    await tier.set("k", b"v")
    assert await tier.get("k") == b"v"
    server.kill()
    for call in (tier.get("k"), tier.set("k", b"v"), tier.delete("k"), tier.exists("k"), tier.expire("k", 5)):
        started = time.monotonic()
        with pytest.raises(TierError):
            await call
        assert time.monotonic() - started < 4.5
    server.restart()
    await tier.set("k", b"v2")
    assert await tier.get("k") == b"v2"
    await tier.close()


async def test_a_server_out_of_memory_is_a_tier_error(start_valkey) -> None:
    """What the server refuses (here: OOM without eviction) is mapped; reading goes on."""
    server = start_valkey()
    tier = RedisTier(server.url)
    await tier.set("k", b"v")
    await tier.client.config_set("maxmemory", "1mb")
    with pytest.raises(TierError, match="memory"):
        await tier.set("big", b"x" * 2_000_000)
    assert await tier.get("k") == b"v"
    await tier.close()


async def test_a_silent_server_times_out(hanging_port: int) -> None:
    """A server that takes the connection and never answers costs the timeout, not a hang."""
    tier = RedisTier(f"redis://127.0.0.1:{hanging_port}", connect_timeout=0.2, socket_timeout=0.2, deadline=0.3)
    started = time.monotonic()
    with pytest.raises(TierError):
        await tier.get("k")
    assert time.monotonic() - started < 4.5
    await tier.close()


async def test_a_trickling_server_meets_the_deadline(talking) -> None:
    """A server that always sends a little in time, but never enough, is ended by the deadline of the whole call."""
    port = await talking(lambda _: b"+OK\r\n" * 3 + b"$100\r\nx")
    tier = RedisTier(f"redis://127.0.0.1:{port}", socket_timeout=5, deadline=0.3)
    started = time.monotonic()
    with pytest.raises(TierError):
        await tier.get("k")
    assert time.monotonic() - started < 4.5
    await tier.close()


@pytest.mark.parametrize(
    "nonsense",
    [b"\xff\xfe\x00" * 10, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$x\r\n", b"%1\r\n", b":\r\n", b"-\r\n"],
    ids=repr,
)
async def test_a_garbage_server_is_a_tier_error(talking, nonsense: bytes) -> None:
    """Whatever bytes come back, the driver's exception of the day arrives as TierError."""
    port = await talking(lambda _: nonsense)
    tier = RedisTier(f"redis://127.0.0.1:{port}", deadline=0.3)
    with pytest.raises(TierError):
        await tier.get("k")
    await tier.close()


async def test_urls() -> None:
    """redis://, rediss:// and unix:// are taken, anything else is told at once."""
    assert RedisTier("rediss://localhost:6380/2").client.connection_pool.connection_class is SSLConnection
    assert RedisTier("redis://localhost").client.connection_pool.connection_kwargs["socket_timeout"] == 0.5
    assert RedisTier("unix:///run/valkey.sock").client.connection_pool.connection_kwargs["path"] == "/run/valkey.sock"
    with pytest.raises(ValueError, match="scheme"):
        RedisTier("memcached://localhost")
