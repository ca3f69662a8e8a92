"""Three ways in which a real Valkey answers and takes no writes; each returns what makes it take them again."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Awaitable, Callable
from contextlib import suppress

from serve_app.cache.redis.redis import RedisTier
from serve_app.errors import TierError
from tests.conftest import ValkeyServer

Room = Callable[[], Awaitable[object]]


async def out_of_memory(server: ValkeyServer, tier: RedisTier) -> Room:
    await tier.client.config_set("maxmemory", "1mb")
    return lambda: tier.client.config_set("maxmemory", "0")


async def read_only(server: ValkeyServer, tier: RedisTier) -> Room:
    await tier.client.config_set("replica-read-only", "yes")
    await tier.client.execute_command("REPLICAOF", "127.0.0.1", "1")  # demoted; its primary is nobody
    return lambda: tier.client.execute_command("REPLICAOF", "NO", "ONE")


async def disk_full(server: ValkeyServer, tier: RedisTier) -> Room:
    unlimited = resource.RLIM_INFINITY
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (100_000, unlimited))
    filler = RedisTier(server.url)
    for _ in range(2):  # the append-only file meets the limit
        with suppress(TierError):
            await filler.set("filler", bytes(200_000))
        await asyncio.sleep(1.1)  # it is written once a second
    await filler.close()

    async def room() -> None:
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))

    return room


FULL = [out_of_memory, read_only, disk_full]
