"""Job records in Redis: one value per job with the job's own expiry, and one sorted set by creation time for listing.

Names are HMACs under the deployment secret like everything in shared tiers. If Redis is away, records of this process
are kept in its memory, so that a job submitted here is still answered here; that counts as an error of the tier, and
after a few in a row Redis is left alone for a while. What was deleted here meanwhile stays deleted when it is back.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from serve_app.cache.breaker import Breaker
from serve_app.cache.script import Script
from serve_app.errors import NotFound, TierError
from serve_app.service.jobs import Job, MemoryJobs, Order, Page, gone, unknown
from serve_app.telemetry import Telemetry, TierRead

logger = logging.getLogger(__name__)

T = TypeVar("T")
_DELETED = b"deleted"


class RedisJobs:
    """A JobStore that every replica shares; whoever gave it `redis` closes that.

    tombstone_seconds: how long a deletion is remembered, no less than a record lives.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        secret: bytes,
        telemetry: Telemetry,
        tombstone_seconds: int = 30 * 86_400,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._redis = redis
        self._secret = secret
        self._telemetry = telemetry
        self._clock = clock
        self._tombstone_seconds = tombstone_seconds
        self._here = MemoryJobs()
        self._breaker = Breaker("l2/job")
        self._index = self._name("/index")  # no job id has a slash in it: one path segment is all that a client gives
        self._update = Script("job_update")

    async def add(self, *jobs: Job) -> None:
        """Store new records; one round trip for all."""

        async def shared() -> None:
            pipe = self._redis.pipeline(transaction=False)
            for job in jobs:
                pipe.set(self._name(job.id), job.to_json(), exat=int(job.expires_at), nx=True)  # a tombstone stays
            pipe.zadd(self._index, {job.id: job.created_at for job in jobs})
            lifetime = max(job.expires_at - job.created_at for job in jobs)
            pipe.zremrangebyscore(self._index, "-inf", self._clock() - lifetime)
            await pipe.execute()

        await self._either(shared, lambda: self._here.add(*jobs))

    async def update(self, job: Job) -> bool:
        """Replace the record in one script, so that a deleted job stays deleted; store anew one that Redis lost."""

        async def shared() -> bool:
            replaced: int = await self._update.run(self._redis, [self._name(job.id)], [job.to_json()])
            if replaced == 0 and self._clock() < job.expires_at:  # Redis lost it (restarted without its file)
                await self.add(job)
            return replaced != -1

        async def here() -> bool:
            await self._here.add(job)  # Redis went away after the job was stored there: go on with it here
            return await self._here.update(job)

        return not self._here.was_deleted(job.id) and await self._either(shared, here)

    async def get(self, job_id: str) -> Job | None:
        """Return the record or None; NotFound if it was deleted."""

        async def shared() -> Job | None:
            data = cast(bytes | None, await self._redis.get(self._name(job_id)))
            if data == _DELETED:
                raise gone(job_id)
            return here if data is None else Job.from_json(data)

        here = await self._here.get(job_id)
        return await self._either(shared, lambda: self._here.get(job_id))

    async def delete(self, job_id: str) -> bool:
        """Put a tombstone where the record was, as long-lived as a record."""

        async def shared() -> bool:
            pipe = self._redis.pipeline(transaction=False)
            pipe.set(self._name(job_id), _DELETED, get=True, ex=self._tombstone_seconds)
            pipe.zrem(self._index, job_id)
            old, _ = await pipe.execute()
            return old not in (None, _DELETED)

        here = await self._here.delete(job_id)
        return await self._either(shared, lambda: self._here.delete(job_id)) or here

    async def page(self, *, after: str | None, limit: int, order: Order) -> Page:
        """Return up to `limit` jobs by creation time; records that expired meanwhile are skipped."""

        async def shared() -> Page:
            start = 0 if after is None else await self._rank(after, order) + 1
            jobs: list[Job] = []
            while len(jobs) <= limit:
                members = await self._redis.zrange(self._index, start, start + limit, desc=order == "desc")
                ids = cast(list[bytes], members)
                if not ids:
                    break
                start += len(ids)
                names = [self._name(job_id.decode()) for job_id in ids]
                records = cast(list[bytes | None], await self._redis.mget(names))
                found = [Job.from_json(data) for data in records if data is not None and data != _DELETED]
                jobs += [job for job in found if not self._here.was_deleted(job.id)]
            return Page(tuple(jobs[:limit]), len(jobs) > limit)

        return await self._either(shared, lambda: self._here.page(after=after, limit=limit, order=order))

    async def aclose(self) -> None:
        """Leave the connections to their owner."""

    async def _rank(self, job_id: str, order: Order) -> int:
        rank = self._redis.zrank if order == "asc" else self._redis.zrevrank
        found = cast(int | None, await rank(self._index, job_id))
        if found is None:
            raise unknown(job_id)
        return found

    async def _either(self, shared: Callable[[], Awaitable[T]], here: Callable[[], Awaitable[T]]) -> T:
        """Ask Redis, or this process' memory when Redis cannot answer; NotFound is an answer."""
        began = time.perf_counter()
        missing: NotFound | None = None
        try:
            with self._breaker.attempt():
                try:
                    return await shared()
                except NotFound as error:
                    missing = error
        except Exception as error:  # a broken server can make the parser raise anything
            expected = isinstance(error, RedisError | OSError | TierError)
            logger.log(logging.DEBUG if expected else logging.ERROR, "job records: %s", error, exc_info=not expected)
            self._telemetry.emit(TierRead("l2", "job", "error", time.perf_counter() - began))
        if missing is not None:
            raise missing
        return await here()

    def _name(self, part: str) -> str:
        return "encore:job:" + hmac.new(self._secret, f"job:{part}".encode(), hashlib.sha256).hexdigest()
