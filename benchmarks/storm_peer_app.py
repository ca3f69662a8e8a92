"""What others do about a stampede: handlers of cashews and of aiocache over one Valkey, for uvicorn workers.

The render is a sleep that is counted in Valkey with the worker's process id before it begins. Both locks are given
twice the render, so that neither lets anybody through merely because it took long. cashews' is asked for by its cache
decorator, which puts `locked` around one call per process: with `locked` around each of a thousand waiters, their own
polling kept the finished video from them for most of a minute. aiocache gets a pool that waits for a connection; its
own refuses the hundred and first.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

from aiocache import RedisCache, cached_stampede
from aiocache.serializers import StringSerializer
from cashews import cache
from fastapi import FastAPI
from redis.asyncio import BlockingConnectionPool, Redis
from starlette.responses import Response

PORT_VARIABLE, SECONDS_VARIABLE = "STORM_VALKEY_PORT", "STORM_RENDER_SECONDS"
CASHEWS, AIOCACHE = "/cashews", "/aiocache"
RENDERS = "renders"
"""The list in Valkey to which each render adds its worker's process id."""
VIDEO = "the one video of every peer " * 1_000
LOCKS = 2
"""How many times the render a lock lasts."""

Video = Callable[[], Awaitable[str]]


def build() -> FastAPI:
    """Return one worker's application; uvicorn calls it (`--factory`)."""
    port, seconds = int(os.environ[PORT_VARIABLE]), float(os.environ[SECONDS_VARIABLE])
    counter = Redis.from_pool(BlockingConnectionPool(port=port, timeout=None))

    async def render() -> str:
        await counter.rpush(RENDERS, os.getpid())
        await asyncio.sleep(seconds)
        return VIDEO

    app = FastAPI()
    for path, video in ((CASHEWS, by_cashews(render, port, seconds)), (AIOCACHE, by_aiocache(render, port, seconds))):
        app.add_api_route(path, handler(video), methods=["POST"], response_model=None)
    app.add_api_route("/healthz", os.getpid)
    return app


def by_cashews(render: Video, port: int, seconds: float) -> Video:
    """Return `render` as cashews caches it."""
    cache.setup(f"redis://127.0.0.1:{port}")

    @cache(ttl=LOCKS * seconds, key="video", lock=True)
    async def video() -> str:
        return await render()

    return video


def by_aiocache(render: Video, port: int, seconds: float) -> Video:
    """Return `render` as aiocache caches it."""

    @cached_stampede(
        lease=LOCKS * seconds, ttl=3600, key="video", cache=RedisCache, endpoint="127.0.0.1", port=port,
        namespace="aiocache", serializer=StringSerializer(), connection_pool_class=BlockingConnectionPool, timeout=None,
    )  # fmt: skip
    async def video() -> str:
        return await render()

    return video


def handler(video: Video) -> Callable[[], Awaitable[Response]]:
    """Return what answers a request with `video`."""

    async def answer() -> Response:
        return Response(await video(), media_type="video/mp4")

    return answer
