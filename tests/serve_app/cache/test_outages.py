"""What each way of being broken does to a tier: a miss, soon no attempt at all, and by itself it is used again.

Every row of the tables is a real server (Valkey, SeaweedFS, a file system) that is really broken: through a proxy that
counts what reaches it, or by the server's own limits. Time is a clock turned by hand; what takes real time is bounded
by timeouts a row's docstring would not tell apart from a hang.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from benchmarks.fault_proxy import Fault, FaultProxy
from serve_app.cache.breaker import BreakerState
from serve_app.cache.circuit import Circuit
from serve_app.cache.objects.s3 import S3Store
from serve_app.cache.redis.redis import RedisTier
from serve_app.cache.remote_tier import RemoteTier
from serve_app.cache.store import AiocacheStore
from serve_app.core import Entry
from serve_app.telemetry import BreakerTurned, TierRead, TierWritten
from tests.conftest import S3Server, ValkeyServer, seaweedfs
from tests.serve_app.cache.full_valkey import FULL, out_of_memory, read_only

KEYS = [f"{number:064x}" for number in range(40)]
ENTRY = Entry.of(KEYS[0], os.urandom(20_000))
BROKEN = [fault for fault in Fault if fault is not Fault.NONE]
PATIENCE = 30.0
"""Seconds after which something hangs, on a machine however busy."""


def short_redis(url: str) -> RedisTier:
    return RedisTier(url, connect_timeout=0.3, socket_timeout=0.3, deadline=0.5)


def s3_behind(port: int, s3_server: Any, s3_prefix: str, **options: Any) -> S3Store:
    where = {"bucket": s3_server.bucket, "prefix": s3_prefix, "timeout": 5.0} | options
    return S3Store(
        where.pop("bucket"),
        where.pop("prefix"),
        endpoint_url=where.pop("endpoint_url", f"http://127.0.0.1:{port}"),
        region=s3_server.region,
        access_key_id=s3_server.access_key_id,
        secret_access_key=s3_server.secret_access_key,
        **where,
    )


@pytest.fixture
def proxy_of() -> Iterator[Callable[[str | int], FaultProxy]]:
    """A function that puts a proxy before a server."""
    proxies: list[FaultProxy] = []

    def make(target: str | int) -> FaultProxy:
        proxies.append(FaultProxy(target).__enter__())
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.__exit__()


class Counted:
    """A store that counts the calls which come to it."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*args: Any) -> Any:
            self.calls += 1
            return await method(*args)

        return call


class Subject:
    """One tier over one server behind a proxy, its circuit on a clock turned by hand."""

    def __init__(self, tier: str, store: Any, proxy: FaultProxy | None, recorder: Any, clock: Any) -> None:
        self.proxy = proxy
        self.clock = clock
        self.circuit = Circuit(tier, recorder, clock=clock)
        self.store = Counted(store)
        self.tier = RemoteTier(tier, "video", self.store, secret=b"s", telemetry=recorder, circuit=self.circuit)

    @property
    def attempts(self) -> tuple[int, int]:
        """What came to the store, and what of it to the proxy (nothing can be counted where nobody listens)."""
        return self.store.calls, 0 if self.proxy is None else self.proxy.attempts

    async def soon(self, work: Awaitable[Any]) -> Any:
        async with asyncio.timeout(PATIENCE):
            return await work

    async def holds(self, *entries: Entry) -> None:
        """Write while nothing is broken, until it can be read."""
        for entry in entries:

            async def held(entry: Entry = entry) -> bool:
                return await self.tier.write(entry) == entry and await self.tier.read(entry.key) == entry

            await self.back(held)

    async def back(self, done: Callable[[], Awaitable[bool]]) -> None:
        """Let trials through until one succeeds; a busy machine may fail the first."""
        for _ in range(20):
            self.clock.advance(5)
            if await self.soon(done()):
                return
            await asyncio.sleep(0.1)
        raise AssertionError("it does not come back")


@pytest.fixture
async def subject(request, valkey_server, s3_server, s3_prefix, proxy_of, recorder, clock) -> AsyncIterator[Subject]:
    """`l2` or `l3` behind a proxy."""
    if request.param == "l2":
        valkey_server.flush()
        proxy = proxy_of(str(valkey_server.socket))
        store: Any = AiocacheStore(short_redis(f"redis://127.0.0.1:{proxy.port}"))
    else:
        proxy = proxy_of(urlsplit(s3_server.endpoint_url).port)
        store = s3_behind(proxy.port, s3_server, s3_prefix)
    made = Subject(request.param, store, proxy, recorder, clock)
    yield made
    await made.tier.aclose()


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("subject", ["l2", "l3"], indirect=True)
async def test_a_tier_that_does_not_answer(subject: Subject, recorder: Any, fault: Fault) -> None:
    """Three misses, each bounded; then no attempt at all, whatever is asked, until a trial finds it well."""
    tier, proxy = subject.tier, subject.proxy
    assert proxy is not None
    await subject.holds(ENTRY)
    proxy.break_as(fault)
    for _ in range(3):
        assert await subject.soon(tier.read(ENTRY.key)) is None
    assert tier.stats()["breaker"] == "open"
    before = subject.attempts
    for key in KEYS[:10]:
        assert await tier.read(key) is None
        assert await tier.write(Entry.of(key, b"new")) is None
        assert (await tier.contains(key), await tier.delete(key), await tier.touch(key)) in (
            (None, None, False), (None, None, True)
        )  # fmt: skip
    assert subject.attempts == before
    subject.clock.advance(5)
    assert await subject.soon(tier.read(ENTRY.key)) is None  # one trial fails: left alone again
    before = subject.attempts
    assert await tier.read(ENTRY.key) is None
    assert subject.attempts == before

    proxy.heal()

    async def reads() -> bool:
        return await tier.read(ENTRY.key) == ENTRY

    await subject.back(reads)
    assert tier.stats()["breaker"] == "closed"
    turns = [(event.asked, event.state) for event in recorder.events if isinstance(event, BreakerTurned)]
    assert turns == [("reach", "open"), ("reach", "closed")]
    assert set(recorder.results(TierRead, tier.tier)) == {"hit", "error"}


@pytest.mark.parametrize("subject", ["l2", "l3"], indirect=True)
async def test_writes_alone_open_it_too(subject: Subject) -> None:
    """A process that only writes (a video encoder) finds out by itself, and sends nothing while it is open."""
    assert subject.proxy is not None
    subject.proxy.break_as(Fault.REFUSING)
    for _ in range(3):
        assert await subject.tier.write(ENTRY) is None
    before = subject.attempts
    assert before > (0, 0)
    for _ in range(5):
        assert await subject.tier.write(ENTRY) is None
    assert subject.attempts == before
    subject.proxy.heal()

    async def writes() -> bool:
        return await subject.tier.write(ENTRY) == ENTRY

    await subject.back(writes)


@pytest.mark.parametrize("subject", ["l2", "l3"], indirect=True)
async def test_an_answer_that_came_too_late_is_nobody_elses(subject: Subject) -> None:
    """Reads that were given up leave no half answer behind: every later read gets its own value or none."""
    assert subject.proxy is not None
    entries = [Entry.of(key, key.encode() * 50) for key in KEYS[:6]]
    await subject.holds(*entries)
    for _ in range(2):
        subject.proxy.break_as(Fault.SLOW)
        await subject.soon(asyncio.gather(*(subject.tier.read(entry.key) for entry in entries)))
        subject.proxy.break_as(Fault.HANGING)  # what trickled goes on to live with its connections
        subject.proxy.fault = Fault.NONE

        async def reads() -> bool:
            found = await asyncio.gather(*(subject.tier.read(entry.key) for entry in entries))
            assert all(one is None or one == entry for one, entry in zip(found, entries, strict=True))
            return None not in found

        await subject.back(reads)
    assert subject.tier.stats().get("corrupt", 0) == 0


async def test_a_stopped_valkey(start_valkey: Callable[..., ValkeyServer], recorder: Any, clock: Any) -> None:
    """SIGSTOP: the kernel still takes connections, nobody answers; after SIGCONT the value is there."""
    server = start_valkey()
    one = Subject("l2", AiocacheStore(short_redis(server.url)), None, recorder, clock)
    await one.holds(ENTRY)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        for _ in range(3):
            assert await one.soon(one.tier.read(ENTRY.key)) is None
        assert one.circuit.reach.state is BreakerState.OPEN
    finally:
        os.kill(server.pid, signal.SIGCONT)

    async def reads() -> bool:
        return await one.tier.read(ENTRY.key) == ENTRY

    await one.back(reads)
    await one.tier.aclose()


# A server that answers, but takes no values.


@pytest.mark.parametrize("fill", FULL, ids=lambda fill: fill.__name__)
async def test_a_valkey_that_takes_no_values_is_still_read(
    start_valkey: Callable[..., ValkeyServer], recorder: Any, clock: Any, fill: Callable[..., Any]
) -> None:
    """Hits go on while it is full or read-only; after three refusals nothing is sent; it takes values again later."""
    server = start_valkey(persistent=True)
    redis = RedisTier(server.url, deadline=10, socket_timeout=10)
    one = Subject("l2", AiocacheStore(redis), None, recorder, clock)
    await one.tier.write(ENTRY)
    await redis.client.pexpire(one.tier._name(ENTRY.key), 100_000)  # so that a read would extend it
    room = await fill(server, redis)
    new = [Entry.of(key, bytes(50_000)) for key in KEYS[1:]]
    for entry in new[:3]:
        assert await one.tier.write(entry) is None
        assert await one.tier.read(ENTRY.key) == ENTRY
    assert one.tier.stats()["store_breaker"] == "open"
    assert one.tier.stats()["breaker"] == "closed"
    calls = await set_calls(redis)
    for entry in new[3:9]:
        assert await one.tier.write(entry) is None
        assert await one.tier.read(ENTRY.key) == ENTRY
    assert await set_calls(redis) == calls
    assert recorder.results(TierWritten, "l2")[1:] == ["error"] * 9
    await room()

    async def writes() -> bool:
        return await one.tier.write(new[0]) == new[0]

    await one.back(writes)
    assert one.tier.stats()["store_breaker"] == "closed"
    turns = [(event.asked, event.state) for event in recorder.events if isinstance(event, BreakerTurned)]
    assert turns == [("store", "open"), ("store", "closed")]
    await one.tier.aclose()


async def set_calls(redis: RedisTier) -> int:
    """How often a SET came to the server, run or refused."""
    counts = (await redis.client.info("commandstats")).get("cmdstat_set", {})
    return int(counts.get("calls", 0)) + int(counts.get("rejected_calls", 0))


async def test_a_refusing_valkey_still_lets_be_deleted(
    start_valkey: Callable[..., ValkeyServer], recorder: Any, clock: Any
) -> None:
    """Out of memory, a value can still be deleted, which is what makes room, also while nothing is stored."""
    server = start_valkey()
    redis = RedisTier(server.url)
    one = Subject("l2", AiocacheStore(redis), None, recorder, clock)
    await one.tier.write(ENTRY)
    await out_of_memory(server, redis)
    for key in KEYS[1:4]:
        assert await one.tier.write(Entry.of(key, bytes(50_000))) is None
    assert one.circuit.store.state is BreakerState.OPEN
    assert await one.tier.delete(ENTRY.key) is True
    await one.tier.aclose()


async def test_after_a_failover_the_new_primary_is_found(
    start_valkey: Callable[..., ValkeyServer], proxy_of: Any, recorder: Any, clock: Any
) -> None:
    """The name leads to another server by now, the open connections to the old, demoted one: they are given up."""
    old, new = start_valkey(), start_valkey()
    proxy = proxy_of(str(old.socket))
    redis = RedisTier(f"redis://127.0.0.1:{proxy.port}")
    one = Subject("l2", AiocacheStore(redis), None, recorder, clock)
    assert await one.tier.write(ENTRY) == ENTRY
    await read_only(old, redis)
    proxy._target = str(new.socket)  # connections that are open stay with the old one
    assert await one.tier.write(ENTRY) is None
    assert await one.tier.write(ENTRY) == ENTRY
    await one.tier.aclose()


# A server, or a way to it, that is set up wrongly.


async def test_a_wrong_password(start_valkey: Callable[..., ValkeyServer], recorder: Any, clock: Any) -> None:
    """A refused password is an error to be counted, opens the breaker, and heals when the password is right."""
    server = start_valkey()
    plain = RedisTier(server.url)
    await plain.client.config_set("requirepass", "right")
    tier = RedisTier(f"unix://:wrong@{server.socket}")
    one = Subject("l2", AiocacheStore(tier), None, recorder, clock)
    for _ in range(4):
        assert await one.tier.read(ENTRY.key) is None
    assert one.tier.stats()["breaker"] == "open"
    await plain.client.config_set("requirepass", "wrong")

    async def asks() -> bool:
        return await one.tier.contains(ENTRY.key) is False

    await one.back(asks)
    await plain.close()
    await one.tier.aclose()


@pytest.mark.parametrize("fault", ["no bucket", "tls"])
async def test_a_wrong_address(fault: str, s3_server: Any, s3_prefix: str, recorder: Any, clock: Any) -> None:
    """A bucket that is not there, TLS spoken to a plain port: an error each time, soon none, never an exception."""
    port = urlsplit(s3_server.endpoint_url).port
    wrong = {"no bucket": {"bucket": "no-such-bucket"}, "tls": {"endpoint_url": f"https://127.0.0.1:{port}"}}
    one = Subject("l3", s3_behind(port, s3_server, s3_prefix, **wrong[fault]), None, recorder, clock)
    for _ in range(4):
        assert await one.soon(one.tier.read(ENTRY.key)) is None
    assert recorder.results(TierRead, "l3") == ["error"] * 4
    assert one.tier.stats()["breaker"] == "open"
    await one.tier.aclose()


async def test_tls_to_a_plain_redis(valkey_server: ValkeyServer, proxy_of: Any, recorder: Any, clock: Any) -> None:
    """rediss:// to a server without TLS is an error each time, and soon none."""
    proxy = proxy_of(str(valkey_server.socket))
    tier = RedisTier(f"rediss://127.0.0.1:{proxy.port}")
    one = Subject("l2", AiocacheStore(tier), None, recorder, clock)
    for _ in range(4):
        assert await one.soon(one.tier.read(ENTRY.key)) is None
    assert one.tier.stats()["breaker"] == "open"
    await one.tier.aclose()


FULL_FOLDER = """
import asyncio, json, resource, sys
from pathlib import Path
from serve_app.cache.circuit import Circuit
from serve_app.cache.objects.folder import FolderStore
from serve_app.cache.remote_tier import RemoteTier
from serve_app.core import Entry
from serve_app.telemetry import Telemetry

async def main():
    tier = RemoteTier("l3", "video", FolderStore(Path(sys.argv[1])), secret=b"s", telemetry=Telemetry(),
                      circuit=Circuit("l3", retry_after=0.2))
    small, large = Entry.of("1" * 64, bytes(1000)), [Entry.of(str(n) * 64, bytes(200_000)) for n in range(2, 8)]
    said = {"stored": await tier.write(small) == small}
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    said["refused"] = [await tier.write(entry) for entry in large[:3]] == [None] * 3
    said["open"] = tier.stats()
    said["read"] = await tier.read(small.key) == small
    said["left"] = [path.name for path in Path(sys.argv[1]).glob("tmp/*")]
    said["half"] = [await tier.contains(entry.key) for entry in large[:3]]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await asyncio.sleep(0.3)
    said["again"] = await tier.write(large[0]) == large[0]
    said["closed"] = tier.stats()["store_breaker"]
    print(json.dumps(said))

asyncio.run(main())
"""


def test_a_folder_without_room_is_still_read(tmp_path: Path) -> None:
    """Writes that the file system breaks off leave nothing behind; three end storing for a while, reading goes on."""
    command = [sys.executable, "-c", textwrap.dedent(FULL_FOLDER), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    assert said.pop("open")["store_breaker"] == "open"
    assert said == {
        "stored": True, "refused": True, "read": True, "left": [], "half": [False] * 3, "again": True,
        "closed": "closed",
    }  # fmt: skip


IDENTITIES = {
    "identities": [
        {
            "name": "encore",
            "credentials": [{"accessKey": "test", "secretKey": "test-secret"}],
            "actions": ["Admin", "Read", "Write", "List"],
        }
    ]
}


@pytest.fixture(scope="module")
def guarded_s3(short_tmp: Path) -> Iterator[tuple[S3Server, int]]:
    """A SeaweedFS of this module's own that asks for credentials, and its process id."""
    identities = short_tmp / "identities.json"
    identities.write_text(json.dumps(IDENTITIES))
    with seaweedfs(short_tmp / "guarded", f"-s3.config={identities}") as server:
        yield server


async def test_wrong_credentials(guarded_s3: tuple[S3Server, int], recorder: Any, clock: Any) -> None:
    """A signature that SeaweedFS refuses is an error to be counted and opens the breaker, for reads and writes."""
    server, _ = guarded_s3
    wrong = S3Store(
        server.bucket, "wrong", endpoint_url=server.endpoint_url, region=server.region, access_key_id="test",
        secret_access_key="not the secret",
    )  # fmt: skip
    one = Subject("l3", wrong, None, recorder, clock)
    assert await one.soon(one.tier.write(ENTRY)) is None
    for _ in range(3):
        assert await one.soon(one.tier.read(ENTRY.key)) is None
    assert recorder.results(TierRead, "l3") == ["error"] * 3
    assert one.tier.stats()["breaker"] == "open"
    await one.tier.aclose()


async def test_s3_without_room_is_still_read(guarded_s3: tuple[S3Server, int], recorder: Any, clock: Any) -> None:
    """A full disk under SeaweedFS: it answers 500 to PUT, storing rests after three, reading goes on.

    The last test of its server: it stays full until it is started again, as SeaweedFS does.
    """
    server, pid = guarded_s3
    store = S3Store(
        server.bucket, "full", endpoint_url=server.endpoint_url, region=server.region, timeout=20.0,
        access_key_id=server.access_key_id, secret_access_key=server.secret_access_key,
    )  # fmt: skip
    one = Subject("l3", store, None, recorder, clock)
    assert await one.tier.write(ENTRY) == ENTRY
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    refused = []
    for key in KEYS[1:]:  # what is open already still takes some
        if await one.soon(one.tier.write(Entry.of(key, bytes(100_000)))) is None:
            refused.append(key)
        if len(refused) == 3:
            break
    assert one.tier.stats()["store_breaker"] == "open"
    assert one.tier.stats()["breaker"] == "closed"
    assert await one.tier.read(ENTRY.key) == ENTRY
    await one.tier.aclose()
