"""Builds the Bloom filters from L3's own list of names: where there is none yet, and anew once a day.

Building anew is how a filter forgets what was evicted or deleted. Meanwhile every writer adds to both filters, so
that nothing stored before, during or after is missing in the new one; until it is whole the old one answers, or "maybe"
does. Of all processes the one with the lease builds; if it dies, another begins again, and a builder that was only slow
is fenced off by its token.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable

from serve_app.cache.redis.bloom import BloomFilter
from serve_app.cache.redis.lease import Lease
from serve_app.cache.storage_name import SHARDS, shard_of
from serve_app.errors import TierError
from serve_app.tasks import Periodic

logger = logging.getLogger(__name__)

LOOK_SECONDS = 30.0
DAY = 86_400.0
_BATCH = 200
"""Names in one script: some two milliseconds of Redis' time."""

Names = Callable[[], AsyncIterator[str]]


class BloomBuilder:
    """Keeps `bloom` built from `names`; `clock` gives Unix seconds."""

    def __init__(
        self,
        bloom: BloomFilter,
        names: Names,
        lease: Lease,
        *,
        rebuild_seconds: float = DAY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._bloom = bloom
        self._names = names
        self._lease = lease
        self._rebuild_seconds = rebuild_seconds
        self._clock = clock
        self._periodic = Periodic("Bloom filters", self.look, lambda: LOOK_SECONDS, expected=TierError)

    def start(self) -> None:
        """Begin looking after the filters on the running event loop; doing so again is harmless."""
        self._periodic.start()

    async def aclose(self) -> None:
        """Stop, in the middle of building if need be."""
        await self._periodic.aclose()

    async def look(self) -> bool:
        """Build a missing or old filter unless another process does; tell whether this one did. Raises TierError."""
        if not await self._due() or not await self._lease.take():
            return False
        try:
            return await self._due() and await self.build()
        finally:
            await self._lease.give_back()

    async def build(self) -> bool:
        """Build all shards' filters from the names that L3 has; False when another builder took over.

        Raises TierError, then what was in use stays in use.
        """
        token, began, count = uuid.uuid4().hex, self._clock(), 0
        await asyncio.gather(*(self._bloom.begin(shard, token) for shard in range(SHARDS)))
        waiting: dict[int, list[str]] = defaultdict(list)
        async for name in self._names():
            shard = shard_of(name)
            waiting[shard].append(name)
            count += 1
            if len(waiting[shard]) >= _BATCH and not await self._fill(shard, token, waiting.pop(shard)):
                return False
        for shard, names in waiting.items():
            if not await self._fill(shard, token, names):
                return False
        ended = await asyncio.gather(*(self._bloom.end(shard, token) for shard in range(SHARDS)))
        logger.info("Bloom filters of %d names built in %.1f s", count, self._clock() - began)
        return all(ended)

    async def _fill(self, shard: int, token: str, names: list[str]) -> bool:
        await self._lease.take()  # longer; the token decides, not the lease
        return await self._bloom.fill(shard, token, names)

    async def _due(self) -> bool:
        shards = await self._bloom.shards()
        oldest = min((0 if shard is None else shard["built_at"]) for shard in shards)
        return oldest == 0 or self._clock() - oldest / 1000 > self._rebuild_seconds
