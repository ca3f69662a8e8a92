"""Replays a stream against a live server: each request when it is due, at most 64 at a time, every answer hashed.

A request that finds 64 others under way waits, and its latency counts from when it was due, not from when it was sent:
a server that falls behind must not be asked less for it (coordinated omission). `saturated` asks as fast as it is
answered instead, for what would fall behind without end.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean

from form import Row
from scenario_stream import Fields, Request, Stream
from server import cpu_seconds
from storm_clients import Crowd
from storm_server import DIFFUSIONS, StormServer

CONCURRENCY = 64
PRICE = 2.50
"""Dollars per GPU-hour; a processor-second of a diffusion replica is charged as one of a GPU."""
HITS = ("l1", "l2", "l3")


@dataclass(frozen=True, slots=True)
class Served:
    """How one request was answered: when it was due and how long it took from then, in seconds."""

    request: Request
    outcome: str
    digest: str
    seconds: float
    asked_again: int

    @property
    def rendered(self) -> bool:
        """Whether it was the one that made its video; all others are hits, or joined one that was being made."""
        return self.outcome in ("rendered", "latents")


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay came to. diffusion_seconds: processor time of all diffusion replicas."""

    served: Sequence[Served]
    renders: int
    seconds: float
    diffusion_seconds: float

    @property
    def latencies(self) -> list[float]:
        """All latencies in seconds, ascending."""
        return sorted(each.seconds for each in self.served)

    @property
    def hits(self) -> int:
        """Requests that made no render."""
        return sum(not each.rendered for each in self.served)

    def wrong(self, digests: Sequence[str]) -> int:
        """Return how many answers have other bytes than their label's."""
        return sum(each.digest != digests[each.request.label] for each in self.served)

    def row(self, system: str) -> Row:
        """Return the line of the table."""
        return row(
            system, len(self.served), self.renders, self.hits, self.latencies, self.seconds, self.diffusion_seconds
        )


def row(
    system: str, requests: int, renders: int, hits: int, latencies: Sequence[float], seconds: float, diffusion: float
) -> Row:
    """Return a line of the table; latencies in seconds, ascending."""
    return {
        "system": system, "requests": requests, "renders": renders, "hit ratio": hits / requests,
        "mean ms": 1e3 * fmean(latencies), "p50 ms": 1e3 * percentile(latencies, 0.5),
        "p99 ms": 1e3 * percentile(latencies, 0.99), "diffusion busy": diffusion / (DIFFUSIONS * seconds),
        "diffusion s": diffusion, "$ per 1,000": 1e3 * diffusion / 3600 * PRICE / requests,
    }  # fmt: skip


def percentile(latencies: Sequence[float], share: float) -> float:
    """Return the latency that `share` of them did not exceed; they come ascending."""
    return latencies[min(len(latencies) - 1, int(share * len(latencies)))]


async def replayed(server: StormServer, stream: Stream, say: Callable[[str], None]) -> Replay:
    """Ask each request when it is due."""
    crowd, places = Crowd(server.port), asyncio.Semaphore(CONCURRENCY)
    before, busy, began = len(server.renders()), _busy(server), time.monotonic()

    async def ask(request: Request) -> Served:
        await asyncio.sleep(began + request.at - time.monotonic())
        async with places:
            answer = await crowd.ask(request.fields)
        seconds = time.monotonic() - began - request.at
        return Served(request, answer.outcome, answer.digest, seconds, answer.asked_again)

    telling = asyncio.create_task(_tell(crowd, len(stream.requests), say))
    try:
        served = await asyncio.gather(*map(ask, stream.requests))
    finally:
        telling.cancel()
    seconds = time.monotonic() - began
    return Replay(served, len(server.renders()) - before, seconds, _busy(server) - busy)


async def saturated(server: StormServer, requests: Sequence[Fields]) -> Replay:
    """Ask all, 64 at a time, as fast as they are answered."""
    crowd, places = Crowd(server.port), asyncio.Semaphore(CONCURRENCY)
    before, busy, began = len(server.renders()), _busy(server), time.monotonic()

    async def ask(fields: Fields) -> Served:
        async with places:
            answer = await crowd.ask(fields)
        return Served(Request(0.0, -1, fields), answer.outcome, answer.digest, answer.seconds, answer.asked_again)

    served = await asyncio.gather(*map(ask, requests))
    seconds = time.monotonic() - began
    return Replay(served, len(server.renders()) - before, seconds, _busy(server) - busy)


@dataclass(frozen=True, slots=True)
class Simulated:
    """What a cache that looks requests up by `key` would have come to; latencies in seconds, ascending."""

    renders: int
    latencies: Sequence[float]


def simulated(
    stream: Stream, key: Callable[[Request], Hashable], hit_seconds: float, render_seconds: float
) -> Simulated:
    """Serve `stream` by a queue: a key's first request takes one of the renderers, later ones wait for it or hit.

    render_seconds: of one renderer, of which there are as many as the measured server has.
    """
    free = [0.0] * DIFFUSIONS
    ready: dict[Hashable, float] = {}
    latencies = []
    for request in stream.requests:
        name = key(request)
        if name not in ready:
            begins = max(request.at, heapq.heappop(free))
            heapq.heappush(free, begins + render_seconds)
            ready[name] = begins + render_seconds
        latencies.append(max(ready[name] - request.at, hit_seconds))
    return Simulated(len(ready), sorted(latencies))


def _busy(server: StormServer) -> float:
    return sum(map(cpu_seconds, server.diffusions()))


async def _tell(crowd: Crowd, wanted: int, say: Callable[[str], None]) -> None:
    while True:
        await asyncio.sleep(10)
        say(f"  {crowd.answered} of {wanted} answered, asked again: {dict(crowd.again) or 'never'}")
