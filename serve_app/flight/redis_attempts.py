"""Attempts in Redis: one hash of the few videos that are being rendered, or whose renders ended in a death.

It has no TTL, so no eviction policy that spares what lives for ever touches it; each change is one script. It belongs
beside the job records, where nothing is evicted.
"""

from __future__ import annotations

from serve_app.cache.redis.records import RedisRecords
from serve_app.cache.redis.script import Script, milliseconds
from serve_app.cache.storage_name import storage_name
from serve_app.flight.attempts import QUARANTINE_SECONDS, End

_ATTEMPTS = Script("attempts")


class RedisAttempts(RedisRecords):
    """Attempts that every process shares; `redis` belongs to the caller, which closes it."""

    kind = "attempts"
    called = "Attempts of renders"

    async def settle(self, key: str, *, at_least: int = 0, died: bool = True) -> int:
        """Return how many attempts have ended in a death, the open one too; raises Unavailable."""
        return await self._count(key, "settle", at_least, "1" if died else "")

    async def begin(self, key: str, attempt: str) -> None:
        """Record an attempt; raises Unavailable."""
        await self._count(key, "begin", attempt)

    async def close(self, key: str, attempt: str, end: End) -> None:
        """Close it if it is the open one; raises Unavailable."""
        await self._count(key, "close", attempt, "1" if end is End.DONE else "")

    async def _count(self, key: str, *verb: str | int) -> int:
        name = storage_name(self._secret, "video", key)
        args = (self._now(), milliseconds(QUARANTINE_SECONDS), name, *verb)
        return int(await self._run(_ATTEMPTS, [self._name("/videos")], args, storing=verb[0] == "begin"))
