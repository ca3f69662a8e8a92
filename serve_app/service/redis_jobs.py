"""Job records in Redis: one value per job with the job's own expiry, one sorted set by creation time for listing, and
one of the unfinished by their last heartbeat.

Each change is one script, so that no crash leaves a record without its entries. Names are HMACs under the deployment
secret, and share a hash tag, so that a cluster keeps all of them in one slot. When Redis is away every method says
Unavailable (an answer from this process' memory could be anything but the truth); that counts as an error of the tier,
and after a few in a row Redis is left alone for a while.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, cast

from serve_app.cache.circuit import Circuit
from serve_app.cache.redis import RedisTier
from serve_app.cache.script import Script, milliseconds
from serve_app.service.job import Job, Order, Page, gone, unknown
from serve_app.service.jobs import ORPHAN_SECONDS
from serve_app.service.redis_records import Client, RedisRecords
from serve_app.service.repeats import Mark
from serve_app.telemetry import Telemetry

logger = logging.getLogger(__name__)

_ADD, _UPDATE, _DELETE = (Script(f"job_{verb}") for verb in ("add", "update", "delete"))
_BEAT, _CLAIM = Script("job_beat", "steady"), Script("job_claim", "steady")
_DELETED = b"deleted"
_DIGEST = 64


class RedisJobs(RedisRecords):
    """A JobStore that every replica shares; whoever gave it `redis` closes that.

    tombstone_seconds: how long a deletion is remembered, no less than a record lives. clock: for tests, Unix seconds
    instead of the server's own time. circuit: that of the server, shared with whatever else asks it.
    """

    kind = "job"
    called = "Job records"

    def __init__(
        self,
        redis: RedisTier,
        *,
        secret: bytes,
        telemetry: Telemetry,
        tombstone_seconds: float = 30 * 86_400,
        clock: Callable[[], float] | None = None,
        circuit: Circuit | None = None,
    ) -> None:
        super().__init__(redis, secret=secret, telemetry=telemetry, clock=clock, circuit=circuit)
        self._tombstone_seconds = tombstone_seconds
        # No job id has a slash in it: one path segment is all that a client gives.
        self._index, self._unfinished = self._name("/index"), self._name("/unfinished")

    async def accept(self, job: Job, mark: Mark) -> str:
        """Store a new job and its mark in one script; raises KeyReused, and Unavailable when it may not be stored."""
        kept = min(mark.seconds, job.expires_at - job.created_at)
        marking = (mark.digest, milliseconds(kept), "1" if mark.asks else "", mark.instead_of)
        answered = await self._add(self._mark(mark), marking, (job,))
        return (_answer(mark, *answered) if answered else None) or job.id

    async def recall(self, mark: Mark) -> str | None:
        """Return the id of the job that answers the mark; raises KeyReused."""
        name = self._mark(mark)
        found = cast(bytes | None, await self._ask(lambda redis: redis.get(name)))
        return None if found is None else _answer(mark, found[:_DIGEST], found[_DIGEST:])

    async def add(self, *jobs: Job) -> None:
        """Store new records; one round trip for all."""
        await self._add(self._index, ("", 0, "", ""), jobs)

    async def update(self, job: Job) -> Job | None:
        """Write the newest state, unless the job was deleted, has expired or has ended before."""
        record = (job.id, job.to_json(), repr(job.created_at), milliseconds(job.expires_at), _unfinished(job))
        names = [self._index, self._unfinished, self._name(job.id)]
        answer = await self._run(_UPDATE, names, (self._now(), *record))
        if answer[0] == b"ended":
            return _read(answer[1]) or job
        return job if answer[0] == b"stored" else None

    async def beat(self, job_ids: Iterable[str]) -> list[str]:
        """Say that these jobs are followed; return those that are not among the unfinished."""
        names = [self._unfinished, self._name("/steady")]
        args: list[bytes | str | float] = [self._now(), milliseconds(ORPHAN_SECONDS), *job_ids]
        missing: list[bytes] = await self._run(_BEAT, names, args)
        return [job_id.decode() for job_id in missing]

    async def claim(self, limit: int) -> tuple[Job, ...]:
        """Return orphans; what has no record any more (it expired) is taken off the set."""
        args = (self._now(), milliseconds(ORPHAN_SECONDS), max(0, limit))
        names = [self._unfinished, self._name("/steady")]
        ids = [job_id.decode() for job_id in await self._run(_CLAIM, names, args)]
        records = await self._records(ids)
        if lost := [job_id for job_id, data in zip(ids, records, strict=True) if data in (None, _DELETED)]:
            await self._ask(lambda redis: redis.zrem(self._unfinished, *lost))
        return tuple(job for job in map(_read, records) if job is not None)

    async def get(self, job_id: str) -> Job | None:
        """Return the record or None; NotFound if it was deleted."""
        name = self._name(job_id)
        data = cast(bytes | None, await self._ask(lambda redis: redis.get(name)))
        if data == _DELETED:
            raise gone(job_id)
        return _read(data)

    async def delete(self, job_id: str) -> bool:
        """Put a tombstone where the record was, as long-lived as a record."""
        names = [self._index, self._unfinished, self._name(job_id)]
        return bool(await self._run(_DELETE, names, (job_id, milliseconds(self._tombstone_seconds)), storing=False))

    async def page(self, *, after: str | None, limit: int, order: Order) -> Page:
        """Return up to `limit` jobs by creation time; records that expired meanwhile are skipped."""
        start = 0 if after is None else await self._rank(after, order) + 1
        jobs: list[Job] = []
        while len(jobs) <= limit and (ids := await self._listed(start, limit + 1, order)):
            start += len(ids)
            jobs += [job for job in map(_read, await self._records(ids)) if job is not None]
        return Page(tuple(jobs[:limit]), len(jobs) > limit)

    async def aclose(self) -> None:
        """Leave the connections to their owner."""

    async def _add(self, mark: str, marking: Sequence[bytes | str | float], jobs: Sequence[Job]) -> list[bytes]:
        names = [self._index, self._unfinished, mark, *(self._name(job.id) for job in jobs)]
        lifetime = max(job.expires_at - job.created_at for job in jobs)
        args: list[bytes | str | float] = [self._now(), milliseconds(lifetime), *marking]
        for job in jobs:
            args += job.id, job.to_json(), repr(job.created_at), milliseconds(job.expires_at), _unfinished(job)
        answered: list[bytes] = await self._run(_ADD, names, args)
        return answered

    async def _listed(self, start: int, count: int, order: Order) -> list[str]:
        ids = await self._ask(lambda redis: redis.zrange(self._index, start, start + count - 1, desc=order == "desc"))
        return [job_id.decode() for job_id in cast(list[bytes], ids)]

    async def _rank(self, job_id: str, order: Order) -> int:
        member = job_id.encode("utf-8", "surrogatepass")  # as a client gave it

        def rank(redis: Client) -> Awaitable[Any]:
            return (redis.zrank if order == "asc" else redis.zrevrank)(self._index, member)

        found = cast(int | None, await self._ask(rank))
        if found is None:
            raise unknown(job_id)
        return found

    async def _records(self, ids: Sequence[str]) -> list[bytes | None]:
        if not ids:
            return []
        names = [self._name(job_id) for job_id in ids]
        return cast(list[bytes | None], await self._ask(lambda redis: redis.mget(names)))

    def _mark(self, mark: Mark) -> str:
        return self._name(f"/mark/{mark.name}")


def _answer(mark: Mark, digest: bytes, job_id: bytes) -> str | None:
    return mark.answer(digest.decode(), job_id.decode())


def _unfinished(job: Job) -> str:
    return "" if job.status.is_final else "1"


def _read(data: bytes | None) -> Job | None:
    """Return the job of a record; None for a tombstone, and for what only another release can read."""
    if data is None or data == _DELETED:
        return None
    try:
        return Job.from_json(data)
    except (KeyError, TypeError, ValueError) as error:
        logger.warning("a job record cannot be read: %s %s", type(error).__name__, error)
        return None
