"""What do clients notice when L2 or L3 is broken, in each way that it can be?

Per row a fresh server over a real Valkey and a real SeaweedFS, with the default timeouts: its four deployments
as parts in one process (outage_line.py), a render that takes no time, a proxy before each store that counts what comes.
Two clients ask for new videos and one for known ones while the tier is healthy, broken, and healed; jobs are submitted
too. Every video is compared with what it must be.

    longest miss     of a new video while it is broken, beside the bound: all that one miss asks of a broken tier, one
                     process after the other, each given up at its timeout (see BOUND), beside the longest healthy one
    longest L1 hit   of a known video: it asks nobody, so it must not take as long as the shortest timeout
    while open       attempts counted at the proxy while every breaker of the tier was open and no trial was due; for a
                     tier that answers but takes no values: values sent to it while no breaker let any through
    closed after     seconds from healing until the last breaker had closed, by the traffic alone
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fault_proxy import Fault, FaultProxy
from form import Goal, Result, Row, main
from outage_line import FIELDS, Line, open_line, video_of
from outage_losses import Lost, all_losses
from outage_servers import S3, Child, seaweedfs, valkey
from redis.asyncio import Redis
from redis.exceptions import RedisError

from serve_app.cache.breaker import Breaker, BreakerState
from serve_app.errors import EncoreError, Unavailable
from serve_app.schema import parse_request
from serve_app.service.service import Answer, VideoService
from serve_app.settings import Settings
from serve_app.telemetry import Telemetry

BUCKET = "encore-outage"
L2_CALLS, L3_CALLS = 9, 5
"""What one miss asks of a tier, one after the other. Of L2: the router's look and its filter's, the text encoder's look
and its filter's, diffusion's filter, the video encoder's look, its filter, its flight_result and its write. Of L3: the
router's look, the text encoder's, diffusion's, and the video encoder's look and write."""
BOUND = {"l2": 0.5, "l3": 1.0, "l2 slow": 2.0, "l3 slow": 5.0}
"""Seconds for one of them: a silence at the default timeouts; a trickle ends with the whole call's deadline."""
SHORTEST_TIMEOUT = 0.5
AT_ONCE = 4
ON_THE_WAY = 0.1
"""Seconds in which an attempt arrives: two at a time were seen, of which the first to fail opened the breaker."""
RECOVERY_SECONDS = 40.0

Heal = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Outage:
    """One row: `tiers` that are broken as `name` says by `strike`, which returns what heals them."""

    tiers: tuple[str, ...]
    name: str
    strike: Callable[[Bench], Awaitable[Heal]]
    refuses: bool = False
    """It answers, but takes no values."""

    @property
    def bound(self) -> float:
        """The longest that a miss may be made to wait, in seconds."""
        slow = " slow" if self.name == Fault.SLOW else ""
        calls = {"l2": L2_CALLS, "l3": L3_CALLS}
        return sum(calls[tier] * BOUND[tier + slow] for tier in self.tiers)


@dataclass
class Counts:
    """What clients saw in one phase: seconds of each answer, and how many were not what they must be."""

    misses: list[float] = field(default_factory=list)
    hits: list[float] = field(default_factory=list)
    failed: int = 0
    wrong: int = 0
    jobs_wrong: int = 0
    jobs: int = 0
    over: bool = False
    """Nobody asks for anything more."""


@dataclass
class Bench:
    """One row's server and stores."""

    service: VideoService
    line: Line
    valkey: Child
    seaweedfs: Child
    proxies: dict[str, FaultProxy]
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def breakers(self, tiers: Sequence[str], name: str) -> list[Breaker]:
        """Return the breakers of these tiers in every process that has opened one."""
        return [getattr(process.circuits[tier], name) for process in self.line.processes for tier in tiers]


async def broken(bench: Bench, tiers: Sequence[str], fault: Fault) -> Heal:
    """Break the way to these tiers."""
    for tier in tiers:
        bench.proxies[tier].break_as(fault)

    async def heal() -> None:
        for tier in tiers:
            bench.proxies[tier].heal()

    return heal


async def stopped(bench: Bench) -> Heal:
    """SIGSTOP Valkey."""
    os.kill(bench.valkey.pid, signal.SIGSTOP)

    async def heal() -> None:
        os.kill(bench.valkey.pid, signal.SIGCONT)

    return heal


def told(*commands: tuple[str, ...], then: tuple[str, ...]) -> Callable[[Bench], Awaitable[Heal]]:
    """Tell Valkey to take no more values, by administrators' commands, and `then` to take them again."""

    async def strike(bench: Bench) -> Heal:
        admin = Redis(unix_socket_path=str(bench.valkey.address))
        for command in commands:
            await admin.execute_command(*command)

        async def heal() -> None:
            await admin.execute_command(*then)
            await admin.aclose()

        return heal

    return strike


async def valkey_disk_full(bench: Bench) -> Heal:
    """Let the append-only file grow no further, and wait until Valkey has found out."""
    bench.valkey.limit(1)
    async with Redis(unix_socket_path=str(bench.valkey.address)) as admin:
        with contextlib.suppress(RedisError):
            while True:
                await admin.set("filler", "x")
                await asyncio.sleep(0.1)

    async def heal() -> None:
        bench.valkey.limit()

    return heal


async def seaweedfs_disk_full(bench: Bench) -> Heal:
    """Let no file of SeaweedFS grow; its index stays broken until it is started again, as with a full disk."""
    bench.seaweedfs.limit(1000)

    async def heal() -> None:
        await asyncio.to_thread(bench.seaweedfs.stop)
        await asyncio.to_thread(bench.seaweedfs.start)

    return heal


def outages() -> list[Outage]:
    """Return the rows of the table."""
    faults = [fault for fault in Fault if fault is not Fault.NONE]
    rows = [
        Outage(tiers, fault, lambda bench, tiers=tiers, fault=fault: broken(bench, tiers, fault))
        for tiers in (("l2",), ("l3",))
        for fault in faults
    ]
    rows += [
        Outage(("l2",), "stopped (SIGSTOP)", stopped),
        Outage(("l2",), "out of memory", told(("CONFIG", "SET", "maxmemory", "1mb"),
                                              then=("CONFIG", "SET", "maxmemory", "0")), refuses=True),
        Outage(("l2",), "read-only replica", told(("REPLICAOF", "127.0.0.1", "1"),
                                                  then=("REPLICAOF", "NO", "ONE")), refuses=True),
        Outage(("l2",), "disk full", valkey_disk_full, refuses=True),
        Outage(("l2",), "wrong password", told(("CONFIG", "SET", "requirepass", "another"),
                                               ("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"),
                                               then=("CONFIG", "SET", "requirepass", ""))),
        Outage(("l3",), "disk full", seaweedfs_disk_full, refuses=True),
        Outage(("l2", "l3"), Fault.DEAD, lambda bench: broken(bench, ("l2", "l3"), Fault.DEAD)),
        Outage(("l2", "l3"), Fault.HANGING, lambda bench: broken(bench, ("l2", "l3"), Fault.HANGING)),
    ]  # fmt: skip
    return rows


@contextlib.asynccontextmanager
async def bench_of(folder: Path, seaweed: Child) -> AsyncIterator[Bench]:
    """Start a server over a Valkey of its own and `seaweed`."""
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(valkey(folder))
        assert isinstance(seaweed.address, int)
        proxies = {"l2": FaultProxy(store.address), "l3": FaultProxy(seaweed.address)}
        for proxy in proxies.values():
            stack.enter_context(proxy)
        settings = Settings(
            redis_url=f"redis://127.0.0.1:{proxies['l2'].port}",
            l3_url=f"s3://{BUCKET}/{folder.name}",
            s3_endpoint_url=f"http://127.0.0.1:{proxies['l3'].port}",
        )
        service, line = open_line(settings, Telemetry())
        try:
            yield Bench(service, line, store, seaweed, proxies)
        finally:
            for proxy in proxies.values():
                proxy.heal()
            await service.aclose()
            await line.aclose()


async def ask(bench: Bench, prompt: str, counts: Counts, seconds: list[float]) -> None:
    """Ask for one video, compare it with what it must be."""
    began = time.perf_counter()
    try:
        answer: Answer = await bench.service.generate(parse_request({"prompt": prompt} | FIELDS))
    except EncoreError as error:
        print(f"failed: {error!r}", file=sys.stderr)
        counts.failed += 1
        return
    seconds.append(time.perf_counter() - began)
    if len(counts.hits) % 20 == 0 or seconds is counts.misses:
        expected = await asyncio.to_thread(video_of, answer.spec, answer.keys)
        counts.wrong += answer.entry.data != expected


async def misses(bench: Bench, counts: Counts) -> None:
    """Ask for new videos, one after the other."""
    while not counts.over:
        await ask(bench, f"new video {next(bench.numbers)}", counts, counts.misses)
        await asyncio.sleep(0.1)


async def hits(bench: Bench, counts: Counts) -> None:
    """Ask for a known video, again and again."""
    while not counts.over:
        await ask(bench, "the known video", counts, counts.hits)
        await asyncio.sleep(0.01)


async def jobs(bench: Bench, counts: Counts, accepted: bool) -> None:
    """Submit a job a second; `accepted`: whether it can be kept, so that it must complete, else it must be a 503."""
    while not counts.over:
        counts.jobs += 1
        try:
            job = await bench.service.jobs.submit(parse_request({"prompt": f"job {next(bench.numbers)}"} | FIELDS))
            while not job.status.is_final:
                await asyncio.sleep(0.05)
                job = await bench.service.jobs.get(job.id)
            counts.jobs_wrong += not (accepted and job.status == "completed")
        except Unavailable as error:
            counts.jobs_wrong += accepted or error.retry_after is None
        await asyncio.sleep(1.0)


@contextlib.asynccontextmanager
async def clients(bench: Bench, accepted: bool = True, submit: bool = True) -> AsyncIterator[Counts]:
    """Let clients ask for as long as the `with` lasts; what is under way then is answered first."""
    counts = Counts()
    running = [misses(bench, counts), misses(bench, counts), hits(bench, counts)]
    tasks = [asyncio.create_task(work) for work in running + ([jobs(bench, counts, accepted)] if submit else [])]
    try:
        yield counts
    finally:
        counts.over = True
        done, late = await asyncio.wait(tasks, timeout=60)
        for task in late:
            task.print_stack()
        for task in done:
            task.result()


async def count_while_open(bench: Bench, outage: Outage) -> int:
    """Count until cancelled; returns what came to the tiers while all of their breakers that ever opened were open.

    Not counted is what came while a trial was due, while a process had yet to find out, or `ON_THE_WAY` when it did.
    """
    name = "store" if outage.refuses else "reach"
    breakers = bench.breakers(outage.tiers, name)
    came: Counter[frozenset[int]] = Counter()
    before, since = 0, None
    ever: frozenset[int] = frozenset()
    try:
        while True:
            now = tuple(breaker.opened_at for breaker in breakers)
            count = sum(
                proxy.values if outage.refuses else proxy.attempts
                for tier, proxy in bench.proxies.items()
                if tier in outage.tiers
            )
            opened = frozenset(number for number, at in enumerate(now) if at is not None)
            ever |= opened
            still = all(breakers[number].state is BreakerState.OPEN for number in opened)
            still &= time.monotonic() - max((now[number] or 0.0 for number in opened), default=0.0) > ON_THE_WAY
            if still and since == now:
                came[opened] += count - before
            before, since = count, now if still else None
            await asyncio.sleep(0.005)
    except asyncio.CancelledError:
        return came[ever]


async def warm(bench: Bench) -> None:
    """Bring the known video into memory and every connection up; raises RuntimeError after a minute."""
    await bench.service.generate(parse_request({"prompt": "the known video"} | FIELDS))
    tiers, deadline = tuple(bench.proxies), time.monotonic() + 60
    counts = Counts()
    for _ in itertools.count():
        await ask(bench, f"new video {next(bench.numbers)}", counts, counts.misses)
        if all(breaker.opened_at is None for breaker in bench.breakers(tiers, "reach")):
            return
        if time.monotonic() > deadline:
            raise RuntimeError("the server does not come into good order")
        await asyncio.sleep(1)


async def measured(outage: Outage, folder: Path, seaweed: Child, seconds: float) -> Row:
    """Run one row."""
    async with bench_of(folder, seaweed) as bench:
        await warm(bench)
        async with clients(bench) as healthy:
            await asyncio.sleep(3)
            while len(healthy.misses) < 5:  # noqa: ASYNC110 - a busy machine
                await asyncio.sleep(0.1)
        counting: asyncio.Task[int] = asyncio.create_task(count_while_open(bench, outage))
        heal = await outage.strike(bench)
        async with clients(bench, accepted="l2" not in outage.tiers) as during:
            await asyncio.sleep(seconds)
        counting.cancel()
        came = await counting
        opened = [b for name in ("reach", "store") for b in bench.breakers(outage.tiers, name) if b.opened_at]
        await heal()
        healed = time.perf_counter()
        async with clients(bench, submit=False) as after:
            while any(breaker.opened_at is not None for breaker in opened):
                if time.perf_counter() - healed > RECOVERY_SECONDS:
                    break
                await asyncio.sleep(0.02)
            closed = time.perf_counter() - healed
            await asyncio.sleep(1)
    print(f"{'+'.join(outage.tiers)} {outage.name}: closed after {closed:.1f} s", file=sys.stderr)
    every = (healthy, during, after)
    return {
        "tier": "+".join(outage.tiers),
        "outage": str(outage.name),
        "answered": sum(len(counts.misses) + len(counts.hits) for counts in every),
        "failed": sum(counts.failed for counts in every),
        "wrong bytes": sum(counts.wrong for counts in every),
        "jobs": during.jobs,
        "jobs wrong": during.jobs_wrong,
        "healthy miss, s": max(healthy.misses),
        "miss p99, s": percentile(during.misses, 0.99),
        "longest miss, s": max(during.misses),
        "bound, s": outage.bound + max(healthy.misses),
        "L1 hit p99, ms": 1e3 * percentile(during.hits, 0.99),
        "longest L1 hit, ms": 1e3 * max(during.hits),
        "breakers opened": len(opened),
        "while open": came,
        "closed after, s": closed,
    }


def percentile(seconds: Sequence[float], share: float) -> float:
    """Return what `share` of them did not exceed."""
    return sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))]


async def all_rows(seconds: float, folder: Path) -> list[Row]:
    """Run the rows, a few at a time: they wait more than they work."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, outage: Outage) -> Row:
        async with places:
            if "l3" in outage.tiers and outage.refuses:
                starting = seaweedfs(folder / f"s{number}", BUCKET)
                own = await asyncio.to_thread(starting.__enter__)
                try:
                    return await measured(outage, folder / f"v{number}", own, seconds)
                finally:
                    await asyncio.to_thread(starting.__exit__, None, None, None)
            return await measured(outage, folder / f"v{number}", shared, seconds)

    with seaweedfs(folder / "s", BUCKET) as shared:
        return await asyncio.gather(*(one(number, outage) for number, outage in enumerate(outages())))


def measure(quick: bool) -> Result:
    """Run every row and judge it."""
    os.environ |= S3 | {"ENCORE_SECRET": "outage"}
    with tempfile.TemporaryDirectory(prefix="encore-") as folder:
        rows = asyncio.run(all_rows(8.0 if quick else 30.0, Path(folder)))
        losses = asyncio.run(all_losses(Path(folder), quick))
    facts: Row = {"renders": "none: what a miss takes is what the tiers made it wait"}
    facts |= {
        f"accepted jobs, {each.case}": f"{each.accepted}, lost {each.lost} ({each.renders} renders, "
        f"{each.refused} refused, ended after {each.seconds:.1f} s)"
        for each in losses
    }
    return Result(rows, [*goals(rows), *losing(losses)], facts)


def losing(losses: Sequence[Lost]) -> list[Goal]:
    """Return what must hold over all cases of accepted jobs."""
    stepped = [each for each in losses if "clock" in each.case]
    return [
        Goal.exactly("accepted jobs lost", sum(each.lost for each in losses), 0),
        Goal.exactly("jobs with another video", sum(each.wrong for each in losses), 0),
        Goal.exactly("jobs refused, or live renders lost to a clock", sum(each.refused for each in losses), 0),
        Goal.at_most("longest until ended after a step of the clock, s", max(each.seconds for each in stepped), 30),
    ]


def goals(rows: Sequence[Row]) -> list[Goal]:
    """Return what must hold over all rows."""

    def total(column: str) -> float:
        return sum(float(row[column]) for row in rows)

    return [
        Goal.exactly("failed requests", total("failed"), 0),
        Goal.exactly("answers with wrong bytes", total("wrong bytes"), 0),
        Goal.exactly("jobs neither kept nor refused in time", total("jobs wrong"), 0),
        Goal.exactly("attempts while open", total("while open"), 0),
        Goal.exactly("outages that opened no breaker", sum(not row["breakers opened"] for row in rows), 0),
        Goal.at_most("longest miss over its bound", max(row["longest miss, s"] / row["bound, s"] for row in rows), 1),
        Goal.at_most("longest L1 hit, s", max(row["longest L1 hit, ms"] for row in rows) / 1e3, SHORTEST_TIMEOUT),
        Goal.at_most("longest until closed, s", max(row["closed after, s"] for row in rows), RECOVERY_SECONDS / 2),
    ]


def draw(axes: Any, result: Result) -> None:
    """Draw per row the longest miss beside its bound, and the seconds until all was closed."""
    labels = [f"{row['tier']} {row['outage']}" for row in result.rows]
    places = range(len(labels))
    axes.barh(places, [row["bound, s"] for row in result.rows], color="0.9", label="bound")
    axes.barh(places, [row["longest miss, s"] for row in result.rows], 0.5, label="longest miss")
    axes.plot([row["closed after, s"] for row in result.rows], places, "k|", label="closed after healing")
    axes.set_yticks(places, labels, fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="seconds", title="A new video while a tier is broken")
    axes.legend()


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", measure, draw))
