"""A lease on work in a real Valkey: one holder, kept while it takes it again, run out by the clock of who wants it."""

from __future__ import annotations

from serve_app.cache.redis.lease import Lease
from serve_app.cache.redis.redis import RedisTier


async def test_one_holder_until_it_falls_silent(valkey_url: str) -> None:
    """Others are refused while the holder takes it again, and have it after its length of silence, or when it is back.

    The key's own TTL, which goes by the server's clock, is far longer and decides nothing.
    """
    now = 0.0
    tier = RedisTier(valkey_url)
    one, two, three = (Lease(tier, "work", seconds=10, monotonic=lambda: now) for _ in range(3))
    assert await one.take()
    for _ in range(5):
        now += 4
        assert await one.take()
        assert not await two.take()
    assert await tier.client.ttl("encore:lease:work") > 80_000
    now += 9
    assert not await two.take()
    now += 1
    assert await two.take()
    assert not await one.take()
    assert not await three.take()
    await two.give_back()
    assert await three.take()
    await tier.client.aclose()
