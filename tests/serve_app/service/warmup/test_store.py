"""One contract for the records of warm-ups, in memory, in a real Valkey and a cluster of them, and Valkey's absence."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.cache.redis.redis import RedisTier
from serve_app.errors import Busy, Unavailable
from serve_app.service.jobs.store import ORPHAN_SECONDS
from serve_app.service.warmup import redis_store
from serve_app.service.warmup import store as store_module
from serve_app.service.warmup.record import Held, ItemError, WarmStatus, WarmUp
from serve_app.service.warmup.redis_store import RedisWarmUps
from serve_app.service.warmup.store import UNFINISHED, MemoryWarmUps, WarmStore, Written
from serve_app.telemetry import Event, Telemetry, TierRead
from tests.conftest import ValkeyServer
from tests.serve_app.service.rig import NOW, SECRET, Clock
from tests.valkey_cluster import ValkeyCluster

REQUEST = {"templates": [{"prompt": "gr\u00fc\u00dfe {a}", "variables": {"a": ["\U0001f600"]}}], "ttl": "3d"}


def a_warm_up(number: int = 0) -> WarmUp:
    return WarmUp(
        id=f"warm_{number}", created_at=NOW, updated_at=NOW, expires_at=NOW + 3600, total=9, duplicates=1, there=2,
        rendered=1, failed=1, position=3, ahead=(5,), eta_seconds=4.5,
        errors=(ItemError("\u00e9", "render_failed", "no luck"),),
    )  # fmt: skip


HELD = Held(a_warm_up(), REQUEST)
ENDED = replace(a_warm_up(), status=WarmStatus.COMPLETED, completed_at=NOW + 9)


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture(scope="module")
def cluster(valkey_binary: Path, short_tmp: Path) -> Iterator[ValkeyCluster]:
    made = ValkeyCluster(valkey_binary, Path(tempfile.mkdtemp(dir=short_tmp)))
    yield made
    made.close()


@pytest.fixture(params=["memory", "valkey_server", "cluster"])
async def store(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[WarmStore]:
    if request.param == "memory":
        yield MemoryWarmUps(clock)
        return
    server: ValkeyServer | ValkeyCluster = request.getfixturevalue(request.param)
    server.flush()
    tier = RedisTier(server.url, socket_timeout=5.0, deadline=10.0)
    yield RedisWarmUps(tier, secret=SECRET, telemetry=Telemetry(), clock=clock)
    await tier.client.aclose()


async def test_what_is_written_is_read(store: WarmStore) -> None:
    """A record comes back as it was, with every field; of an unknown id there is none."""
    assert await store.get("warm_0") is None
    await store.add(HELD, "one")
    assert await store.get("warm_0") == a_warm_up()
    newer = replace(a_warm_up(), position=9, ahead=())
    assert await store.write(newer, "one") is Written.STORED
    assert await store.get("warm_0") == newer


async def test_an_orphan_goes_to_one_other(store: WarmStore, clock: Clock) -> None:
    """What nobody wrote for five seconds is claimed once, with its templates; then the first runner is refused."""
    await store.add(HELD, "one")
    assert await store.claim(5, "two") == ()
    clock.now += ORPHAN_SECONDS
    assert await store.claim(0, "two") == ()
    assert await store.claim(5, "two") == (HELD,)
    assert await store.claim(5, "three") == ()
    assert await store.write(replace(a_warm_up(), position=9), "one") is Written.LOST
    assert await store.get("warm_0") == a_warm_up()
    assert await store.write(replace(a_warm_up(), position=4), "two") is Written.STORED


async def test_a_write_is_a_sign_of_life(store: WarmStore, clock: Clock) -> None:
    """Whoever writes every few seconds keeps its warm-up."""
    await store.add(HELD, "one")
    for _ in range(4):
        clock.now += ORPHAN_SECONDS - 1
        assert await store.write(a_warm_up(), "one") is Written.STORED
        assert await store.claim(5, "two") == ()


@pytest.mark.parametrize("runner", ["one", None])
async def test_an_end_is_the_last_word(store: WarmStore, clock: Clock, runner: str | None) -> None:
    """After an end, told by the runner or by anybody, nothing is written and nothing is claimed."""
    await store.add(HELD, "one")
    assert await store.write(ENDED, runner) is Written.STORED
    assert await store.write(a_warm_up(), "one") is Written.ENDED
    assert await store.write(replace(ENDED, status=WarmStatus.CANCELLED), None) is Written.ENDED
    assert await store.get("warm_0") == ENDED
    clock.now += 60
    assert await store.claim(5, "two") == ()


async def test_what_the_store_does_not_know_is_not_made_by_a_write(store: WarmStore) -> None:
    """A write without templates cannot bring a warm-up back; adding it can."""
    assert await store.write(a_warm_up(), "one") is Written.GONE
    assert await store.get("warm_0") is None
    await store.add(HELD, "one")
    assert await store.get("warm_0") == a_warm_up()


async def test_what_has_expired_is_swept(store: WarmStore, clock: Clock) -> None:
    """At its `expires_at` a warm-up counts as absent, and a sweep removes it, its place among the unfinished too."""
    await store.add(HELD, "one")
    await store.add(Held(replace(a_warm_up(1), expires_at=NOW + 7200), REQUEST), "one")
    assert await store.sweep() == 0
    clock.now = NOW + 3600
    assert await store.get("warm_0") is None
    assert await store.sweep() == 1
    assert await store.sweep() == 0
    await store.claim(9, "two")  # silence counts from here: in the hour before, nobody asked
    clock.now += ORPHAN_SECONDS
    assert [held.warm_up.id for held in await store.claim(9, "two")] == ["warm_1"]


async def test_they_are_bounded(store: WarmStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many under way and a new one is refused; of too many records the oldest finished ones go."""
    monkeypatch.setattr(redis_store, "KEPT", 3)
    monkeypatch.setattr(store_module, "KEPT", 3)
    for number in range(UNFINISHED):
        await store.add(Held(a_warm_up(number), REQUEST), "one")
    with pytest.raises(Busy, match="under way"):
        await store.add(Held(a_warm_up(UNFINISHED), REQUEST), "one")
    await store.add(HELD, "one")
    for number in range(5, UNFINISHED):
        await store.write(replace(ENDED, id=f"warm_{number}", expires_at=NOW + 60 + number), "one")
    assert await store.sweep() == UNFINISHED - 5
    assert await store.get(f"warm_{UNFINISHED - 1}") is None
    assert [await store.get(f"warm_{number}") for number in range(5)] == [a_warm_up(number) for number in range(5)]


async def test_names_and_no_ttl_in_valkey(valkey_server: ValkeyServer) -> None:
    """Names tell nothing and share a slot; nothing has a TTL, nor what an earlier release left; an end frees memory."""
    valkey_server.flush()
    tier = RedisTier(valkey_server.url)
    store = RedisWarmUps(tier, secret=SECRET, telemetry=Telemetry())
    await store.add(HELD, "one")
    record = store._name("warm_0")
    await tier.client.expire(record, 1000)
    await store.write(a_warm_up(), "one")
    names = [name.decode() for name in await tier.client.keys()]
    assert len(names) == 4  # the unfinished, all, their time, the record
    assert all(name.startswith("encore:{warm_up}:") and "warm_0" not in name for name in names)
    assert {await tier.client.pttl(name) for name in names} == {-1}
    assert await tier.client.hexists(record, "request")
    await store.write(ENDED, "one")
    assert not await tier.client.hexists(record, "request")
    await tier.client.aclose()


async def test_without_redis_everything_is_unavailable(valkey_server: ValkeyServer) -> None:
    """Every method says so, with a time to come back, and it counts as an error of the tier."""
    events: list[Event] = []
    tier = RedisTier("redis://127.0.0.1:1")
    store = RedisWarmUps(tier, secret=SECRET, telemetry=Telemetry(events.append))
    for call in (store.add(HELD, "one"), store.write(a_warm_up(), "one"), store.claim(1, "one"), store.get("warm_0")):
        with pytest.raises(Unavailable) as raised:
            await call
        assert raised.value.retry_after == 5
    assert [(event.tier, event.kind, event.result) for event in events if isinstance(event, TierRead)] == [
        ("l2", "warm_up", "error")
    ] * 4
    await tier.client.aclose()
