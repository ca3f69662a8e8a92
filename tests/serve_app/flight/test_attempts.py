"""Attempts at renders: what counts as a death and what does not, in this process' memory and on a real Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from serve_app.cache.redis.redis import RedisTier
from serve_app.engine.isolation import Isolation
from serve_app.flight.attempts import QUARANTINE_SECONDS, Attempts, End, MemoryAttempts, backoff
from serve_app.flight.redis_attempts import RedisAttempts
from serve_app.render import attempt as attempt_module
from serve_app.render.attempt import RenderAttempt
from serve_app.telemetry import Telemetry
from tests.conftest import ValkeyServer
from tests.serve_app.service.rig import SECRET, Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "redis"])
async def attempts(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Attempts]:
    if request.param == "memory":
        yield MemoryAttempts(clock)
        return
    server: ValkeyServer = request.getfixturevalue("valkey_server")
    server.flush()
    tier = RedisTier(server.url, connect_timeout=30, socket_timeout=30, deadline=60)
    yield RedisAttempts(tier, secret=SECRET, telemetry=Telemetry(), clock=clock)
    for name in await tier.client.keys():
        assert await tier.client.ttl(name) == -1, "what an eviction policy could take"
    await tier.client.aclose()


async def test_what_was_begun_and_not_closed_ended_in_a_death(attempts: Attempts) -> None:
    """Each open attempt counts once, whoever settles it and however often; other videos are another matter."""
    assert await attempts.settle("k") == 0
    for number in (1, 2, 3):
        await attempts.begin("k", f"attempt {number}".replace(" ", "-"))
        assert await attempts.settle("k") == number
        assert await attempts.settle("k") == number
    assert await attempts.settle("other") == 0


async def test_an_orderly_end_does_not_count(attempts: Attempts) -> None:
    """Drained or cancelled it is as if it had not been; with a video, or an error of its own, all is forgotten."""
    await attempts.begin("k", "a")
    assert await attempts.settle("k") == 1
    await attempts.begin("k", "b")
    await attempts.close("k", "b", End.KEPT)
    assert await attempts.settle("k") == 1
    await attempts.begin("k", "c")
    await attempts.close("k", "b", End.DONE)  # an old one wakes up: its word is late
    assert await attempts.settle("k") == 2
    await attempts.begin("k", "d")
    await attempts.close("k", "d", End.DONE)
    assert await attempts.settle("k") == 0


async def test_what_was_given_up_for_something_else_does_not_count(attempts: Attempts) -> None:
    """A render that an invalidation made outdated has not died."""
    await attempts.begin("k", "a")
    assert await attempts.settle("k", died=False) == 0
    assert await attempts.settle("k") == 0


async def test_a_jobs_record_is_the_least(attempts: Attempts) -> None:
    """What a job's record says of its attempts counts also where they were lost."""
    assert await attempts.settle("k", at_least=3) == 3
    await attempts.begin("k", "a")
    assert await attempts.settle("k", at_least=3) == 4


async def test_they_are_forgotten_after_a_while(attempts: Attempts, clock: Clock) -> None:
    """A quarantined video may be tried again when nobody has for an hour."""
    await attempts.begin("k", "a")
    clock.now += QUARANTINE_SECONDS - 1
    assert await attempts.settle("k") == 1
    clock.now += 2
    assert await attempts.settle("k") == 0


async def test_a_record_that_does_not_answer_holds_up_no_render(monkeypatch: pytest.MonkeyPatch) -> None:
    """A render begins without a record of its attempt rather than wait for long."""
    monkeypatch.setattr(attempt_module, "BEGIN_SECONDS", 0.01)

    class Slow(MemoryAttempts):
        async def begin(self, key: str, attempt: str) -> None:
            await asyncio.sleep(3600)

    await RenderAttempt(Isolation(), Slow(), "k").begin()


def test_pauses_grow_and_end_growing() -> None:
    """1, 2, 4, 8 seconds, and no more."""
    assert [backoff(attempts) for attempts in range(7)] == [0, 1, 2, 4, 8, 8, 8]
