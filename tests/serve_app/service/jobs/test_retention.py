"""What is used stays: every kind of hit gives a video its full time in L2 again and tells L3 that it was used."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from serve_app.cache.cache import TOUCH_SECONDS
from serve_app.cache.objects.folder import FolderStore
from serve_app.cache.redis.redis import WEEK, RedisTier
from serve_app.cache.storage_name import redis_name, storage_name
from serve_app.core import Outcome
from serve_app.service.service import VideoService
from serve_app.settings import Settings
from serve_app.telemetry import Telemetry
from serve_app.wiring.tiers import open_cache, open_tiers
from tests.conftest import ValkeyServer
from tests.serve_app.service.rig import SECRET, Rig, ask, ended

JITTER = 0.1


async def sync(service: VideoService, job_id: str) -> Outcome | None:
    return (await service.generate(ask())).outcome


async def submit(service: VideoService, job_id: str) -> Outcome | None:
    return (await ended(service, await service.jobs.submit(ask()))).outcome


async def content(service: VideoService, job_id: str) -> Outcome | None:
    return (await service.jobs.content(job_id))[2]


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that L3 was told of as used."""
    names: list[str] = []
    touch = FolderStore.touch

    async def note(store: FolderStore, name: str) -> None:
        names.append(name)
        await touch(store, name)

    monkeypatch.setattr(FolderStore, "touch", note)
    return names


@pytest.mark.parametrize("tier", [Outcome.L1, Outcome.L2])
@pytest.mark.parametrize("hit", [sync, submit, content], ids=lambda hit: hit.__name__)
async def test_every_hit_extends(
    shared_rig: Rig, touched: list[str], hit: Callable[[VideoService, str], Awaitable[Outcome]], tier: Outcome
) -> None:
    """Content, sync and submit, found in memory or in L2: its time in L2 begins anew; L3 hears of it, once an hour."""
    service = shared_rig.service()
    job = await ended(service, await service.jobs.submit(ask()))
    if tier is Outcome.L2:
        service = shared_rig.service()
    name = storage_name(SECRET, "video", job.keys.video)
    redis = shared_rig.pools[0].client
    for hour in range(2):
        shared_rig.clock.now += TOUCH_SECONDS
        await redis.pexpire(redis_name(name), 5000)
        touched.clear()
        assert await hit(service, job.id) is (tier if hour == 0 else Outcome.L1)
        await hit(service, job.id)
        await service._cache._settled(service._cache._background)
        assert await redis.pttl(redis_name(name)) / 1000 >= WEEK * (1 - JITTER) - 1
        assert touched == [name]


async def test_an_extension_never_shortens(shared_rig: Rig) -> None:
    """What was given a longer life than usual, or one without end, keeps it through every kind of hit."""
    service = shared_rig.service()
    job = await ended(service, await service.jobs.submit(ask()))
    name = storage_name(SECRET, "video", job.keys.video)
    redis = shared_rig.pools[0].client

    async def used() -> int:
        for each in (service, shared_rig.service()):
            shared_rig.clock.now += TOUCH_SECONDS
            for hit in (sync, submit, content):
                await hit(each, job.id)
            await each._cache._settled(each._cache._background)
        return int(await redis.pttl(redis_name(name)))

    await redis.pexpire(redis_name(name), round(3 * WEEK * 1000))
    assert await used() > 2.9 * WEEK * 1000
    await redis.persist(redis_name(name))
    assert await used() == -1


async def test_an_extension_that_failed_is_made_up_for(
    tmp_path: Path, start_valkey: Callable[..., ValkeyServer]
) -> None:
    """A hit while L2 is away does not use up the hour: the first hit after it extends."""
    server = start_valkey(persistent=True)
    rig = Rig(tmp_path, server.url)
    service = rig.service()
    job = await ended(service, await service.jobs.submit(ask()))
    name = storage_name(SECRET, "video", job.keys.video)
    redis = rig.pools[0].client
    await redis.pexpire(redis_name(name), 60_000)
    rig.clock.now += TOUCH_SECONDS
    server.kill()
    for _ in range(5):  # the breaker opens on the way
        assert await sync(service, job.id) is Outcome.L1
        await service._cache._settled(service._cache._background)
    server.restart()
    rig.clock.now += 5
    assert await sync(service, job.id) is Outcome.L1
    await service._cache._settled(service._cache._background)
    assert await redis.pttl(redis_name(name)) > 0.85 * WEEK * 1000
    await rig.aclose()


@pytest.mark.parametrize("ttl", [60, 3600, 7 * 86_400])
async def test_hits_in_memory_come_before_the_end(valkey_server: ValkeyServer, ttl: int) -> None:
    """However short L2 keeps values, what memory answers is extended several times before it would be gone."""
    settings = Settings(redis_url=valkey_server.url, l2_ttl_seconds=ttl)
    cache = open_cache("video", settings, open_tiers(settings, Telemetry()), Telemetry(), l1_bytes=1 << 20)
    assert cache._recent["l2"]._interval <= min(TOUCH_SECONDS, ttl * (1 - JITTER) / 3)
    await cache.aclose()


async def test_extending_is_jittered_and_leaves_the_longer_life(valkey_server: ValkeyServer) -> None:
    """`extend` gives the TTL within its jitter, to what there is; a longer life and one without end stay."""
    valkey_server.flush()
    for draw, share in ((0.0, 0.9), (0.5, 1.0), (0.999, 1.1)):
        tier = RedisTier(valkey_server.url, ttl=1000, uniform=lambda draw=draw: draw)
        await tier.client.set("short", b"v", px=5000)
        await tier.client.set("long", b"v", px=5_000_000)
        await tier.client.set("for ever", b"v")
        for key in ("short", "long", "for ever", "nothing"):
            await tier.extend(key)
        assert await tier.client.pttl("short") == pytest.approx(1_000_000 * share, rel=0.01)
        assert await tier.client.pttl("long") > 4_900_000
        assert await tier.client.pttl("for ever") == -1
        assert await tier.client.pttl("nothing") == -2
        await tier.close()
