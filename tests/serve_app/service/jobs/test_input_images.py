"""Images of jobs: one contract in memory and in a real Valkey, and what a router does for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
import redis

from serve_app.cache.key import image_key
from serve_app.cache.redis.redis import RedisTier
from serve_app.errors import Busy, RenderFailed, Unavailable
from serve_app.service.jobs.input_images import InputImages, InputImageStore, MemoryInputImages
from serve_app.service.jobs.redis_input_images import RedisInputImages
from serve_app.telemetry import Telemetry
from tests.conftest import ValkeyServer
from tests.serve_app.service.rig import SECRET, Clock, a_job

KEYS = ["a" * 64, "b" * 64]
PNG = b"\x89PNG" + bytes(1000)


def redis_images(url: str) -> RedisInputImages:
    return RedisInputImages(RedisTier(url), secret=SECRET, telemetry=Telemetry(lambda event: None))


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[InputImageStore]:
    if request.param == "memory":
        yield MemoryInputImages()
        return
    server: ValkeyServer = request.getfixturevalue("valkey_server")
    server.flush()
    made = redis_images(server.url)
    yield made
    await made._redis.client.aclose()


async def test_an_image_lives_as_long_as_a_job_that_needs_it(store: InputImageStore) -> None:
    """Kept once for two jobs, it is gone with the second; another image is not touched."""
    await store.keep(KEYS[0], "one", PNG, 60)
    await store.keep(KEYS[0], "two", PNG, 60)
    await store.keep(KEYS[1], "one", b"other", 60)
    await store.release(KEYS[0], "one")
    await store.release(KEYS[0], "one")
    await store.release(KEYS[0], "nobody")
    assert await store.find(KEYS[0]) == PNG
    await store.release(KEYS[0], "two")
    assert await store.find(KEYS[0]) is None
    assert await store.find(KEYS[1]) == b"other"
    await store.release(KEYS[0], "two")
    await store.keep(KEYS[0], "three", PNG, 60)
    assert await store.find(KEYS[0]) == PNG


async def test_in_redis_it_is_nameless_and_has_no_ttl(valkey_server: ValkeyServer) -> None:
    """Names say nothing and share a slot, nothing has a TTL, and a sweep leaves nothing when all have expired."""
    valkey_server.flush()
    clock = Clock(1000.0)
    store = RedisInputImages(RedisTier(valkey_server.url), secret=SECRET, telemetry=Telemetry(), clock=clock)
    await store.keep(KEYS[0], "one", PNG, 100)
    await store.keep(KEYS[0], "two", PNG, 50)
    await store.keep(KEYS[1], "three", PNG, 70)
    with redis.Redis(unix_socket_path=str(valkey_server.socket)) as client:
        names = [name.decode() for name in client.scan_iter()]
        assert len(names) == 3
        assert all(name.startswith("encore:{image}:") and KEYS[0] not in name for name in names)
        assert {client.pttl(name) for name in names} == {-1}
        clock.now += 100.0
        assert await store.sweep() == 3
        assert client.hgetall(store._names("")[1]) == {b"bytes": b"0"}
        assert client.keys() == [store._names("")[1].encode()]
    await store._redis.client.aclose()


@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_an_image_expires_with_its_last_job(kind: str, valkey_server: ValkeyServer) -> None:
    """Without a release it counts as absent once every job that needs it has expired, and a sweep deletes it."""
    valkey_server.flush()
    clock, tier = Clock(1000.0), RedisTier(valkey_server.url)
    store: InputImageStore = MemoryInputImages(2500, clock)
    if kind == "redis":
        store = RedisInputImages(tier, secret=SECRET, telemetry=Telemetry(), max_bytes=2500, clock=clock)
    await store.keep(KEYS[0], "one", PNG, 50)
    await store.keep(KEYS[0], "two", PNG, 100)
    await store.keep(KEYS[0], "two", PNG, 10)
    await store.keep(KEYS[1], "three", PNG, 500)
    with pytest.raises(Busy, match="jobs_max_bytes"):
        await store.keep("c" * 64, "four", PNG, 500)
    clock.now += 99.5
    assert await store.sweep() == 1
    assert await store.find(KEYS[0]) == PNG
    clock.now += 0.5
    assert await store.find(KEYS[0]) is None
    assert await store.sweep() == 1
    await store.keep("c" * 64, "four", PNG, 500)
    assert await store.find(KEYS[1]) == PNG
    await tier.client.aclose()


async def test_what_was_kept_survives_valkey_s_death(start_valkey: Callable[..., ValkeyServer]) -> None:
    """Killed and started again, a persistent Valkey has the image; while it is away every call is Unavailable."""
    server = start_valkey(persistent=True)
    store = redis_images(server.url)
    await store.keep(KEYS[0], "one", PNG, 60)
    server.kill()
    for call in (store.keep(KEYS[0], "two", PNG, 60), store.find(KEYS[0]), store.release(KEYS[0], "one")):
        with pytest.raises(Unavailable):
            await call
    server.restart()
    again = redis_images(server.url)
    assert await again.find(KEYS[0]) == PNG
    for each in (store, again):
        await each._redis.client.aclose()


async def test_a_router_s_part(store: InputImageStore) -> None:
    """A fresh image is handed over once and found by others by its spec; who comes too late is told so."""
    job = a_job()
    job = replace(job, spec=replace(job.spec, input_reference="ab" * 32))
    images, others = InputImages(store), InputImages(store)
    await images.keep(job, PNG)
    assert (images.take(job), images.take(job), others.take(job)) == (PNG, None, None)
    assert await others.find(job.spec) == PNG
    others.release(job)
    images.release(a_job())  # one from text: nothing to do
    await others.aclose()
    await images.aclose()
    assert await store.find(image_key(job.spec)) is None
    with pytest.raises(RenderFailed, match="send it again"):
        await images.find(job.spec)
