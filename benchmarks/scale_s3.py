"""How many requests to S3 and round trips to Redis a stream of videos takes, with the Bloom filter on and off.

Encore's own classes from the router's source down to the stores, over a real Valkey and a real SeaweedFS: two routers,
a diffusion replica with its latents, a text encoder with its embeddings, a video encoder. Only the model is none: its
frames are black and its embeddings zeros, so that nothing but looking and storing takes time. HTTP requests to S3 are
counted by botocore as it sends them, round trips to Redis where every one of them goes through.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from outage_servers import S3, seaweedfs, valkey
from sizes import SMALLEST

from serve_app.cache.cache import TieredCache
from serve_app.cache.memory import MemoryTier
from serve_app.cache.objects.s3 import S3Store
from serve_app.cache.redis.bloom import BloomFilter
from serve_app.cache.redis.bloom_builder import BloomBuilder
from serve_app.cache.redis.lease import Lease
from serve_app.cache.redis.redis import RedisTier
from serve_app.cache.storage_name import redis_name, storage_name
from serve_app.core import RenderEvent, RenderRequest, Urgency
from serve_app.engine.engine import Rendering
from serve_app.engine.isolation import Isolation
from serve_app.flight.redis_record import RedisFlightRecords
from serve_app.model.families import load_family
from serve_app.render.latents import LatentsCache
from serve_app.render.text_encoding import PromptEmbedder
from serve_app.render.video_encoding import VideoWriter
from serve_app.render.worker import RenderWorker
from serve_app.schema import parse_request
from serve_app.service.loader import VideoLoader
from serve_app.service.plan import Plan, Planner
from serve_app.telemetry import Telemetry, TierRead

SECRET = b"a benchmark's secret"
BUCKET = "videos"
NEW, OLD = 0.4, 0.1
"""Shares of requests for a video that never was, and for one that Redis has dropped since; the rest are repeats."""
_FAMILY = load_family("native/demo")
_T = TypeVar("_T")


@dataclass
class Counts:
    """What the stream took. vain: looks into S3 for what it did not have."""

    requests: int = 0
    s3: int = 0
    redis: int = 0
    vain: int = 0
    renders: int = 0


class _CountedS3(S3Store):
    def __init__(self, counts: Counts, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._counts = counts
        self._counted = False

    async def _connected(self) -> Any:
        client = await super()._connected()
        if not self._counted:
            client.meta.events.register("before-send.s3", self._count)
            self._counted = True
        return client

    def _count(self, **_: Any) -> None:
        self._counts.s3 += 1


class _CountedRedis(RedisTier):
    def __init__(self, counts: Counts, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._counts = counts

    async def _ask(self, call: Awaitable[_T]) -> _T:
        self._counts.redis += 1
        return await super()._ask(call)


class _NoModel:
    """Stands where the step engine and the text encoder do."""

    def __init__(self) -> None:
        self.isolation = Isolation()

    async def render(self, _key: str, spec: Any, *_: Any, **__: Any) -> Rendering:
        frames = np.zeros((spec.num_frames, spec.height, spec.width, 3), np.uint8)
        return Rendering(frames, torch.zeros(8, spec.num_frames, 4, 4), 0.0, 1.0, 0.0, spec.num_inference_steps)

    def promote(self, _key: str, _urgency: Urgency) -> bool:
        return False

    def encode(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        return [torch.zeros(len(prompt.split()) + 2, 64) for prompt in prompts]


@dataclass
class Line:
    """A renderer: embeddings, diffusion, latents and the encoder, each over tiers of its own."""

    worker: RenderWorker
    embedder: PromptEmbedder
    latents: LatentsCache
    counts: Counts

    async def render(self, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        self.counts.renders += 1
        keys, spec = request.keys, request.spec
        embeds = await self.embedder.embed((keys.prompt, keys.negative_prompt), (spec.prompt, spec.negative_prompt))
        async for event in self.worker.render(request, embeds):
            yield event

    async def cancel(self, key: str) -> None:
        self.worker.cancel(key)

    async def drop_latents(self, key: str) -> None:
        await self.worker.drop_latents(key)

    def promote(self, key: str, urgency: Urgency) -> None:
        self.worker.promote(key, urgency)

    async def stats(self) -> dict[str, Any]:
        return {}


async def requests_to_s3(quick: bool) -> tuple[Counts, Counts]:
    """Return the counts of one stream with the filter on and with it off, each on stores of its own prefix."""
    count = 150 if quick else 600
    os.environ.update(S3)
    with tempfile.TemporaryDirectory(prefix="encore-") as name:
        folder = Path(name)
        with valkey(folder / "v") as redis, seaweedfs(folder / "s", BUCKET) as store:
            url, endpoint = f"unix://{redis.address}", f"http://127.0.0.1:{store.address}"
            on = await _replay(url, endpoint, count, with_filter=True)
            off = await _replay(url, endpoint, count, with_filter=False)
    return on, off


async def _replay(url: str, endpoint: str, count: int, *, with_filter: bool) -> Counts:
    counts = Counts()
    async with AsyncExitStack() as stack:
        redis = _CountedRedis(counts, url, connect_timeout=10.0, socket_timeout=30.0, deadline=60.0)
        await redis.client.flushall()
        store = _CountedS3(counts, BUCKET, "on" if with_filter else "off", endpoint_url=endpoint, timeout=60.0)
        bloom = BloomFilter(redis) if with_filter else None
        if bloom is not None:
            await BloomBuilder(bloom, store.names, Lease(redis, "bloom")).build()
        routers, line = _deployments(stack, counts, redis, store, bloom)
        stack.push_async_callback(redis.close)
        stack.push_async_callback(store.aclose)
        await _ask(routers[0], _plan("the first one"), counts, line)  # connections, scripts, the negative prompt
        counts.s3 = counts.redis = counts.vain = counts.requests = counts.renders = 0
        draw = random.Random(1)
        made: list[Plan] = []
        for number in range(count):
            chance = draw.random()
            plan = _plan(f"video number {number}") if chance < NEW or len(made) < 5 else draw.choice(made)
            if chance >= 1 - OLD:
                await _drop_from_redis(redis, routers, plan)
            if plan not in made:
                made.append(plan)
            await _ask(routers[number % 2], plan, counts, line)
    return counts


def _deployments(
    stack: AsyncExitStack, counts: Counts, redis: RedisTier, store: S3Store, bloom: BloomFilter | None
) -> tuple[list[VideoLoader], Line]:
    def note(event: object) -> None:
        if isinstance(event, TierRead) and event.tier == "l3" and event.result == "miss":
            counts.vain += 1

    telemetry = Telemetry(note)

    def cache(kind: Any, *, l1: bool = False, l2: bool = True) -> TieredCache:
        memory = MemoryTier(1 << 24) if l1 else None
        return TieredCache(
            kind, secret=SECRET, l1=memory, l2=redis if l2 else None, l3=store, bloom=bloom, telemetry=telemetry
        )

    def flights() -> RedisFlightRecords:
        records = RedisFlightRecords(redis, secret=SECRET, linger_seconds=1, bloom=bloom)
        stack.push_async_callback(records.aclose)
        return records

    model: Any = _NoModel()
    latents = LatentsCache(cache("latents", l2=False))
    fingerprint = _FAMILY.card.model_fingerprint
    finisher = VideoWriter(cache("video"), telemetry, flights())
    worker = RenderWorker(model, finisher.finish, fingerprint, latents, flights())
    line = Line(worker, PromptEmbedder(model, cache("embedding", l1=True), telemetry), latents, counts)
    routers = [
        VideoLoader(
            cache("video", l1=True), line, fingerprint, max_queued=64, linger_seconds=1, flight_records=flights()
        )
        for _ in range(2)
    ]
    return routers, line


def _plan(prompt: str) -> Plan:
    planner = Planner(_FAMILY, "encoder", max_prompt_chars=100)
    return planner.plan(parse_request({"prompt": prompt, "size": SMALLEST, "num_frames": 8}))


async def _ask(router: VideoLoader, plan: Plan, counts: Counts, line: Line) -> None:
    counts.requests += 1
    if router.now(plan.keys) is None:
        flight, _ = router.join_or_lead(plan.spec, plan.keys, plan.urgency)
        await flight.wait()
    await line.embedder.settled()
    await line.latents.settled()


async def _drop_from_redis(redis: RedisTier, routers: list[VideoLoader], plan: Plan) -> None:
    """Let a video be as if nobody had asked for it in a week; that is not counted."""
    name = storage_name(SECRET, "video", plan.keys.video)
    await redis.client.unlink(*(redis_name(name, of) for of in ("value", "flight", "waiters")))
    for router in routers:
        router._cache.forget(plan.keys.video)
