"""Does a hit stay as quick when the cache holds a million videos, and what does an entry cost?

A Valkey for each size, each filled with framed values under their names in L2 and with the Bloom filters of as many
names in L3, built by Encore's own builder. Rounds go over all sizes in turn: hits by the script that boards a flight
(value read, life extended), and new videos (the script gives the lead and reads the filter). Ratios are taken within a
round against the smallest size, and medians of rounds are shown. Script time is what the server itself says (INFO
commandstats). Memory of an entry is the server's, less the values' own bytes; L1's is this process'.

Below the table: what a request costs in round trips to Redis and in requests to S3 (a real SeaweedFS), with the filter
on and off, in a stream of 40 % new videos, 50 % repeats and 10 % that Redis has dropped since (`scale_s3.py`).
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from form import Goal, Result, Row, main
from scale_s3 import requests_to_s3
from storm_valkey import valkey

from serve_app.cache.envelope import Envelope
from serve_app.cache.memory import MemoryTier
from serve_app.cache.redis.bloom import FALSE_POSITIVES, BloomFilter
from serve_app.cache.redis.bloom_builder import BloomBuilder
from serve_app.cache.redis.lease import Lease
from serve_app.cache.redis.redis import RedisTier
from serve_app.cache.storage_name import SHARDS, redis_name, storage_name, tag
from serve_app.core import Entry, Urgency
from serve_app.flight.record import Found, Leading
from serve_app.flight.redis_record import RedisFlightRecords

SECRET = b"a benchmark's secret"
PAYLOAD = 256
"""Bytes of a value: small, so that a million fit; what is measured beside them does not depend on it."""
SIZES = (1_000, 100_000, 1_000_000)
QUICK_SIZES = (1_000, 10_000, 100_000)
_BATCH = 2_000
_PATIENCE: dict[str, Any] = {"connect_timeout": 10.0, "socket_timeout": 60.0, "deadline": 120.0}


def key_of(number: int) -> str:
    """Return the key of the n-th video."""
    return hashlib.sha256(f"video {number}".encode()).hexdigest()


@dataclass
class Store:
    """One Valkey with so many entries, and Encore's own classes over it."""

    size: int
    tier: RedisTier
    flights: RedisFlightRecords
    bloom: BloomFilter
    bytes_of_values: int = 0
    empty: int = 0

    async def fill(self) -> None:
        """Store the entries and build the filters."""
        self.empty = await self.memory()
        for start in range(0, self.size, _BATCH):
            pipeline = self.tier.client.pipeline(transaction=False)
            for number in range(start, min(start + _BATCH, self.size)):
                key = key_of(number)
                name = storage_name(SECRET, "video", key)
                entry = Entry.of(key, number.to_bytes(8, "big") * (PAYLOAD // 8), {"n": number})
                frame = Envelope(SECRET).pack(name, entry)
                self.bytes_of_values += len(frame)
                pipeline.set(redis_name(name), frame, px=self.tier.keep_for())
            await pipeline.execute()

    async def build(self) -> float:
        """Build the filters; return the seconds it took."""

        async def names() -> AsyncIterator[str]:
            for number in range(self.size):
                yield storage_name(SECRET, "video", key_of(number))

        began = time.perf_counter()
        await BloomBuilder(self.bloom, names, Lease(self.tier, "bloom")).build()
        return time.perf_counter() - began

    async def memory(self) -> int:
        """Return the bytes that the server uses."""
        return int((await self.tier.client.info("memory"))["used_memory"])

    async def hits(self, numbers: Sequence[int]) -> list[float]:
        """Return the seconds of hits, each by the boarding script."""
        return [await self._timed(key_of(number), Found) for number in numbers]

    async def misses(self, numbers: Sequence[int]) -> list[float]:
        """Return the seconds in which the lead of a new video is given; nothing stays behind."""
        seconds = [await self._timed(key_of(number), Leading) for number in numbers]
        for number in numbers:
            name = storage_name(SECRET, "video", key_of(number))
            await self.tier.client.unlink(redis_name(name, "flight"), redis_name(name, "waiters"))
        return seconds

    async def _timed(self, key: str, wanted: type) -> float:
        began = time.perf_counter()
        join_result = await self.flights.join_or_lead(key, "benchmark", Urgency())
        seconds = time.perf_counter() - began
        if not isinstance(join_result, wanted):
            raise RuntimeError(f"{type(join_result).__name__} instead of {wanted.__name__}")
        return seconds

    async def script_microseconds(self, numbers: Sequence[int]) -> float:
        """Return the server's own mean time of the script for hits."""
        await self.tier.client.config_resetstat()
        await self.hits(numbers)
        stats = await self.tier.client.info("commandstats")
        return float(stats["cmdstat_evalsha"]["usec_per_call"])

    async def false_positives(self, count: int) -> float:
        """Return the share of absent names that the filter takes for stored ones."""
        absent = (storage_name(SECRET, "video", key_of(number)) for number in range(10**9, 10**9 + count))
        wrong = [await self.bloom.may_have(name) for name in absent].count(True)
        return wrong / count

    async def false_negatives(self, numbers: Sequence[int]) -> int:
        """Return how many stored names the filter denies."""
        names = (storage_name(SECRET, "video", key_of(number)) for number in numbers)
        return [await self.bloom.may_have(name) for name in names].count(False)

    async def bits_per_name(self) -> float:
        """Return the filters' bits in all by the names in them."""
        bits = [8 * await self.tier.client.strlen(f"encore:bloom:{tag(shard)}bits") for shard in range(SHARDS)]
        return sum(bits) / self.size


def measure(quick: bool) -> Result:
    """Fill, measure in turns, and compare."""
    return asyncio.run(_measure(quick))


async def _measure(quick: bool) -> Result:
    rounds, calls, absent = (7, 150, 4_000) if quick else (25, 400, 40_000)
    async with AsyncExitStack() as stack:
        stores = [await _store(stack, size) for size in (QUICK_SIZES if quick else SIZES)]
        rows: list[Row] = []
        entry_bytes, build_seconds = [], []
        for store in stores:
            print(f"filling {store.size} ...", file=sys.stderr)
            await store.fill()
            entry_bytes.append((await store.memory() - store.empty - store.bytes_of_values) / store.size)
            build_seconds.append(await store.build())
        hits, misses = await _rounds(stores, rounds, calls)
        for number, store in enumerate(stores):
            numbers = range(0, store.size, max(1, store.size // 1_000))
            rows.append(
                {
                    "videos": store.size,
                    "hit p50 ms": 1000 * statistics.median(map(statistics.median, hits[number])),
                    "hit p99 ms": 1000 * statistics.median(map(_p99, hits[number])),
                    "x hit": _ratio(hits[number], hits[0]),
                    "lead p50 ms": 1000 * statistics.median(map(statistics.median, misses[number])),
                    "x lead": _ratio(misses[number], misses[0]),
                    "script µs": await store.script_microseconds(numbers),
                    "L2 bytes beside value": entry_bytes[number],
                    "filter bits": await store.bits_per_name(),
                    "false positives %": 100 * await store.false_positives(absent),
                    "false negatives": await store.false_negatives(numbers),
                    "filter built in s": build_seconds[number],
                }
            )
        on, off = await requests_to_s3(quick)
    saved = 1 - on.s3 / off.s3
    facts: Row = {
        "L1 bytes beside value": _l1_bytes(20_000),
        "false positives by design, % at most": 100 * FALSE_POSITIVES,
        "requests in the stream": on.requests,
        "S3 requests a request, filter off": off.s3 / off.requests,
        "S3 requests a request, filter on": on.s3 / on.requests,
        "Redis round trips a request, filter off": off.redis / off.requests,
        "Redis round trips a request, filter on": on.redis / on.requests,
        "looks into S3 for what it had not, filter off": off.vain,
        "looks into S3 for what it had not, filter on": on.vain,
    }
    largest = rows[-1]
    goals = [
        Goal.at_most(f"hit p50 at {stores[-1].size} by that at {stores[0].size}", float(largest["x hit"]), 1.1),
        Goal.at_most("false positives, %", max(float(row["false positives %"]) for row in rows), 100 * FALSE_POSITIVES),
        Goal.exactly("false negatives", sum(int(row["false negatives"]) for row in rows), 0),
        Goal.at_least("share of S3 requests that the filter spares", saved, 0.3),
    ]
    return Result(rows, goals, facts)


async def _store(stack: AsyncExitStack, size: int) -> Store:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="encore-")))
    tier = RedisTier(f"redis://127.0.0.1:{stack.enter_context(valkey(folder))}", **_PATIENCE)
    bloom = BloomFilter(tier)
    flights = RedisFlightRecords(tier, secret=SECRET, linger_seconds=1, bloom=bloom)
    stack.push_async_callback(tier.close)
    stack.push_async_callback(flights.aclose)
    return Store(size, tier, flights, bloom)


async def _rounds(
    stores: Sequence[Store], rounds: int, calls: int
) -> tuple[list[list[list[float]]], list[list[list[float]]]]:
    hits: list[list[list[float]]] = [[] for _ in stores]
    misses: list[list[list[float]]] = [[] for _ in stores]
    for turn in range(rounds + 1):
        for number, store in enumerate(stores):
            step = max(1, store.size // calls)
            found = await store.hits([(turn + place * step) % store.size for place in range(calls)])
            led = await store.misses([10**8 + turn * calls + place for place in range(calls)])
            if turn:  # the first one fills connections, scripts and processor caches
                hits[number].append(found)
                misses[number].append(led)
    return hits, misses


def _ratio(samples: list[list[float]], base: list[list[float]]) -> float:
    ratios = [statistics.median(one) / statistics.median(other) for one, other in zip(samples, base, strict=True)]
    return statistics.median(ratios)


def _p99(samples: list[float]) -> float:
    return statistics.quantiles(samples, n=100)[98]


def _l1_bytes(count: int) -> float:
    """Return what an entry in L1 takes of this process' memory beside its value."""
    gc.collect()
    tracemalloc.start()
    tier = MemoryTier(1 << 40)
    before = tracemalloc.get_traced_memory()[0]
    for number in range(count):
        key = key_of(number)
        tier.set_now(key, Entry.of(key, number.to_bytes(8, "big") * (PAYLOAD // 8), {"n": number}))
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return used / count - PAYLOAD


def draw(axes: Any, result: Result) -> None:
    """Draw hit latency and script time over the number of videos."""
    videos = [row["videos"] for row in result.rows]
    axes.plot(videos, [row["hit p50 ms"] for row in result.rows], "o-", label="hit, p50")
    axes.plot(videos, [row["hit p99 ms"] for row in result.rows], "o--", label="hit, p99")
    axes.plot(videos, [row["lead p50 ms"] for row in result.rows], "s-", label="a new video, p50")
    axes.set(xscale="log", xlabel="videos in L2", ylabel="milliseconds", ylim=(0, None))
    axes.set_title("A look into L2 by the number of videos in it")
    axes.legend()


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", measure, draw))
