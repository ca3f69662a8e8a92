"""One contract for the records of warm-ups, in memory, in a real Valkey and a cluster of them, and Valkey's absence."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.cache.redis import RedisTier
from serve_app.errors import Unavailable
from serve_app.service.jobs import ORPHAN_SECONDS
from serve_app.service.redis_warm_ups import RedisWarmUps
from serve_app.service.warm_up import Held, ItemError, WarmStatus, WarmUp
from serve_app.service.warm_ups import MemoryWarmUps, WarmStore, Written
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


async def test_names_and_expiry_in_valkey(valkey_server: ValkeyServer) -> None:
    """Names tell nothing and share a hash tag; a record expires when it says so, by the server's clock."""
    valkey_server.flush()
    tier = RedisTier(valkey_server.url)
    store = RedisWarmUps(tier, secret=SECRET, telemetry=Telemetry())
    server_now = (await tier.client.time())[0]
    await store.add(Held(replace(a_warm_up(), expires_at=server_now + 100), REQUEST), "one")
    names = [name.decode() for name in await tier.client.keys()]
    assert len(names) == 3  # the unfinished, their time, the record
    assert all(name.startswith("encore:{warm_up}:") and "warm_0" not in name for name in names)
    lives = sorted([await tier.client.ttl(name) for name in names])
    assert lives[:2] == [-1, -1]
    assert 90 < lives[2] <= 101
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
