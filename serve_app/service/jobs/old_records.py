"""Records of the former release, which lay beside L2's values and carried TTLs: read where they are, and moved once.

Moving is harmless to repeat and to cut short: a record is written where it belongs before it is removed, one that is
there or was deleted stays as it is, and one for which there is no room waits. What stays behind (tombstones and marks,
whose names cannot be listed) is looked up as long as its TTL lets it be. For records of 0.x
before jobs_url; to be removed with the release after next.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, cast

from serve_app.cache.key import image_key
from serve_app.cache.redis.redis import RedisTier
from serve_app.cache.redis.script import Script
from serve_app.cache.storage_name import record_name
from serve_app.errors import Busy, TierError
from serve_app.service.jobs.job import Job, read_job
from serve_app.service.jobs.redis_input_images import RedisInputImages
from serve_app.service.jobs.redis_store import RedisJobs
from serve_app.service.warmup.record import Held
from serve_app.service.warmup.redis_store import RedisWarmUps, read_warm_up

logger = logging.getLogger(__name__)

_MOVED = Script("job_moved")
_AT_ONCE = 100


class OldRecords:
    """The former layout in `redis`, an L2; what is found there goes to the stores that are given."""

    def __init__(
        self,
        redis: RedisTier,
        *,
        secret: bytes,
        jobs: RedisJobs,
        images: RedisInputImages,
        warm_ups: RedisWarmUps | None,
    ) -> None:
        self._redis = redis
        self._secret = secret
        self._circuit = redis.circuit
        self._jobs = jobs
        self._images = images
        self._warm_ups = warm_ups
        self._index = self._name("job", "/index")

    async def record(self, job_id: str) -> bytes | None:
        """Return a record that was not moved yet, b'deleted' for a tombstone; None also when L2 is away."""
        return await self._get(self._name("job", job_id))

    async def mark(self, name: str) -> bytes | None:
        """Return a mark: the digest of its request and the id of its job."""
        return await self._get(self._name("job", f"/mark/{name}"))

    async def move(self) -> int:
        """Move all that can be; return how many jobs were. Raises Unavailable when they cannot be written."""
        moved = 0
        try:
            while ids := await self._ask(lambda redis: redis.zrange(self._index, 0, _AT_ONCE - 1)):
                count, all_of_them = await self._move([each.decode() for each in ids])
                moved += count
                if not all_of_them:
                    break
            await self._move_warm_ups()
        except TierError as error:
            logger.debug("records of the former release: %s", error)
        if moved:
            logger.info("%d job records of the former release were moved", moved)
        return moved

    async def _move(self, ids: Sequence[str]) -> tuple[int, bool]:
        names = [self._name("job", job_id) for job_id in ids]
        records = await self._ask(lambda redis: redis.mget(names))
        jobs = [job for job in map(read_job, records) if job is not None]
        waiting = {job.id for job in jobs if not await self._move_image(job)}
        waiting |= {job.id for job in await self._jobs.restore(*(job for job in jobs if job.id not in waiting))}
        rows = [row for row in zip(ids, names, records, strict=True) if row[0] not in waiting]
        done = [word for job_id, _, record in rows for word in (job_id, record or b"")]
        if rows:
            await self._ask(partial(_zrem, self._name("job", "/unfinished"), [job_id for job_id, _, _ in rows]))
        with self._circuit.attempt():
            await self._redis.run(_MOVED, [self._index, *(name for _, name, _ in rows)], done)
        return len(jobs) - len(waiting), not waiting

    async def _move_image(self, job: Job) -> bool:
        """Move the image of an unfinished job; False when there is no room for it."""
        if job.status.is_final or not job.spec.input_reference:
            return True
        key = image_key(job.spec)
        data = await self._get(self._name(f"image:{key[:1]}", key))
        try:
            if data is not None:
                await self._images.keep(key, job.id, data, job.expires_at - job.created_at)
        except Busy:
            return False
        return True

    async def _move_warm_ups(self) -> None:
        """Move unfinished warm-ups, where they are to be on another server."""
        unfinished = self._name("warm_up", "/unfinished")
        if self._warm_ups is None:
            return
        for each in await self._ask(lambda redis: redis.zrange(unfinished, 0, -1)):
            await self._move_warm_up(self._warm_ups, self._name("warm_up", each.decode()))
            await self._ask(partial(_zrem, unfinished, [each]))

    async def _move_warm_up(self, warm_ups: RedisWarmUps, name: str) -> None:
        fields = await self._ask(lambda redis: redis.hgetall(name))
        state = read_warm_up(fields.get(b"state"))
        if state is not None and fields.get(b"request"):
            await warm_ups.add(Held(state, json.loads(fields[b"request"])), fields[b"runner"].decode())
        await self._ask(lambda redis: redis.unlink(name))

    async def _get(self, name: str) -> bytes | None:
        try:
            return cast(bytes | None, await self._ask(lambda redis: redis.get(name)))
        except TierError:
            return None

    async def _ask(self, call: Callable[[Any], Awaitable[Any]]) -> Any:
        with self._circuit.attempt():
            return await self._redis.ask(call)

    def _name(self, kind: str, part: str) -> str:
        return record_name(self._secret, kind, part)


def _zrem(name: str, members: Sequence[bytes | str], redis: Any) -> Awaitable[Any]:
    return cast(Awaitable[Any], redis.zrem(name, *members))
