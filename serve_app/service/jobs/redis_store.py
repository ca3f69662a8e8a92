"""Job records in Redis: a hash of records, and sorted sets that say in which order they are listed, expire and go.

Each change is one script over the record and all its entries, so that no crash leaves one without the others, and a
page costs what is on it. Nothing has a TTL, which an eviction policy could use: scripts remove what is too old or too
much (`jobs.lua`). Names are HMACs under the deployment secret and share a hash tag, so that a cluster keeps all of them
in one slot. When Redis is away every method says Unavailable (an answer from this process' memory could be anything but
the truth); that counts as an error of the tier, and after a few in a row Redis is left alone for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, cast

from serve_app.cache.redis.records import RETRY_AFTER, RedisRecords
from serve_app.cache.redis.redis import RedisTier
from serve_app.cache.redis.script import Script, milliseconds
from serve_app.errors import Unavailable
from serve_app.service.jobs.group_commit import GroupCommit
from serve_app.service.jobs.idempotency import Mark
from serve_app.service.jobs.job import Job, Order, Page, gone, read_job, unknown
from serve_app.service.jobs.records_server import RecordsServer
from serve_app.service.jobs.signed_id import created_at, is_receipt
from serve_app.service.jobs.store import MAX_BYTES, MAX_COUNT, ORPHAN_SECONDS, SWEPT_AT_ONCE, full
from serve_app.telemetry import Telemetry

_VERBS = ("add", "update", "get", "recall", "delete", "page", "sweep")
_ADD, _UPDATE, _GET, _RECALL, _DELETE, _PAGE, _SWEEP = (Script(f"job_{verb}", "memory", "jobs") for verb in _VERBS)
_BEAT, _CLAIM = Script("job_beat", "steady"), Script("job_claim", "steady")
_PARTS = (
    "records", "listed", "followed", "open", "ended", "hits", "deleted", "marks", "marked", "hits_marked", "notes"
)  # fmt: skip
_DIGEST = 64
_AT_ONCE = 100

Words = list[bytes | str | float]


class Old(Protocol):
    """Records of the former release (`old_records`)."""

    async def record(self, job_id: str) -> bytes | None:
        """Return a record, b'deleted' for a tombstone."""
        ...

    async def mark(self, name: str) -> bytes | None:
        """Return a mark: the digest of its request and the id of its job."""
        ...


class RedisJobs(RedisRecords):
    """A JobStore that every replica shares; `redis` belongs to the caller, which closes it.

    tombstone_seconds: how long a deletion is remembered after the job was made, no less than a record lives. max_count,
    max_bytes: of unfinished and finished jobs together; hits have as many places again and a quarter of the bytes. A
    server with `maxmemory` gives records no more than half of it. clock: for tests, Unix seconds instead of the
    server's own time.
    server: what is known of it; while that speaks against it no job is accepted. old: records of the former release.
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
        max_count: int = MAX_COUNT,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] | None = None,
        server: RecordsServer | None = None,
    ) -> None:
        super().__init__(redis, secret=secret, telemetry=telemetry, clock=clock)
        self._tombstone_seconds = tombstone_seconds
        self._bounds = (max_count, max_bytes)
        # No job id has a slash in it: one path segment is all that a client gives.
        self._names = [self._name(f"/{part}") for part in _PARTS]
        self._unfinished = self._names[2]
        self._server = server
        self.old: Old | None = None
        self._accepts = GroupCommit(self._write, _AT_ONCE)

    async def accept(self, job: Job, mark: Mark) -> str:
        """Store a new job and its mark, with all that are accepted at the same time in one script.

        Raises KeyReused, Busy when unfinished jobs leave no room, and Unavailable when it may not be stored.
        """
        await self._check_server()
        kept = milliseconds(min(mark.seconds, job.expires_at - job.created_at))
        marking = (mark.name, mark.digest, kept, "1" if mark.asks else "", mark.instead_of)
        answered = await self._accepts.write([*_words(job), *marking])
        if answered == [b"full"]:
            raise full()
        return (_answer(mark, *answered) if answered else None) or job.id

    async def recall(self, mark: Mark) -> str | None:
        """Return the id of the job that answers the mark; raises KeyReused."""
        found: bytes | None = await self._read(_RECALL, mark.name)
        if found is None and self.old is not None:
            found = await self.old.mark(mark.name)
        return None if found is None else _answer(mark, found[:_DIGEST], found[_DIGEST:])

    async def add(self, *jobs: Job) -> None:
        """Store new records; one round trip for all."""
        await self._write([[*_words(job), "", "", "", "", ""] for job in jobs])

    async def restore(self, *jobs: Job) -> list[Job]:
        """Store records of jobs that were accepted elsewhere; return those for which there is no room."""
        words = [[*_words(job, hit=is_receipt(job.id)), "", "", "", "", ""] for job in jobs]
        answers = await self._write(words)
        return [job for job, answer in zip(jobs, answers, strict=True) if answer == [b"full"]]

    async def update(self, job: Job) -> Job | None:
        """Write the newest state, unless the job was deleted, has expired or has ended before."""
        words = (*_words(job)[:4], "ended" if job.status.is_final else "open")
        answer = await self._run(_UPDATE, self._names, (self._now(), *words))
        if answer[0] == b"ended":
            return read_job(answer[1]) or job
        return job if answer[0] == b"stored" else None

    async def beat(self, job_ids: Iterable[str]) -> list[str]:
        """Say that these jobs are followed; return those that are not among the unfinished."""
        names = [self._unfinished, self._name("/steady")]
        args: list[bytes | str | float] = [self._now(), milliseconds(ORPHAN_SECONDS), *job_ids]
        missing: list[bytes] = await self._run(_BEAT, names, args)
        return [job_id.decode() for job_id in missing]

    async def claim(self, limit: int) -> tuple[Job, ...]:
        """Return orphans; what has no record any more is taken off the set."""
        args = (self._now(), milliseconds(ORPHAN_SECONDS), max(0, limit))
        names = [self._unfinished, self._name("/steady")]
        ids = [job_id.decode() for job_id in await self._run(_CLAIM, names, args)]
        records = await self._records(ids)
        if lost := [job_id for job_id, data in zip(ids, records, strict=True) if data is None]:
            await self._ask(lambda redis: redis.zrem(self._unfinished, *lost))
        return tuple(job for job in map(read_job, records) if job is not None)

    async def get(self, job_id: str) -> Job | None:
        """Return the record or None; NotFound if it was deleted."""
        answer: list[bytes] = await self._read(_GET, _member(job_id), _creation(job_id))
        if len(answer) == 2:
            raise gone(job_id)
        return read_job(answer[0]) if answer else await self._earlier(job_id)

    async def delete(self, job_id: str) -> bool:
        """Put a tombstone where the record was; it lives as long as the id could bring the job back."""
        args = (self._now(), _member(job_id), _creation(job_id), *self._bounds)
        return bool(await self._run(_DELETE, self._names, args, storing=False))

    async def page(self, *, after: str | None, limit: int, order: Order) -> Page:
        """Return up to `limit` jobs by creation time, in one round trip unless a thousand in a row have expired.

        A job that is gone is a place to go on from as well, where its id says when it was made.
        """
        if after == "":
            raise unknown(after)
        jobs: list[Job] = []
        rank, place = 0, ("", "") if after is None else (_member(after), _creation(after))
        while rank >= 0 and len(jobs) <= limit:
            answer: list[Any] = await self._read(_PAGE, limit + 1 - len(jobs), order, rank, *place)
            if not answer:
                raise unknown(after or "")
            rank, place = int(answer[0]), ("", "")
            jobs += [job for job in map(read_job, answer[2::2]) if job is not None]
        return Page(tuple(jobs[:limit]), len(jobs) > limit)

    async def _earlier(self, job_id: str) -> Job | None:
        """Return a record that the former release wrote, and that was not moved yet."""
        record = None if self.old is None else await self.old.record(job_id)
        if record == b"deleted":
            raise gone(job_id)
        return read_job(record)

    async def _check_server(self) -> None:
        """Raise Unavailable while the server is known to be one that evicts records."""
        if self._server is None:
            return
        await self._server.check(self._redis)
        if self._server.refusal is not None:
            raise Unavailable(
                "The server of job records may evict them (its maxmemory-policy); the log says what to change.",
                retry_after=RETRY_AFTER,
            )

    async def sweep(self) -> int:
        """Remove what is too old or too much, in scripts of SWEPT_AT_ONCE; return how much it was."""
        forgotten = milliseconds(self._tombstone_seconds)
        args = (self._now(), SWEPT_AT_ONCE, *self._bounds, forgotten)
        if self._server is not None:
            await self._server.check(self._redis)
        return await self._swept(_SWEEP, self._names, args, SWEPT_AT_ONCE)

    async def aclose(self) -> None:
        """Leave the connections to their owner."""

    async def _write(self, jobs: Sequence[Words]) -> list[list[bytes]]:
        """Store new jobs; return what answers each. A server that is full may have made room: then once more."""
        args: Words = [self._now(), *self._bounds, *(word for words in jobs for word in words)]
        answers: list[list[bytes]] = await self._run_again(_ADD, self._names, args)
        return answers

    async def _records(self, ids: Sequence[str]) -> list[bytes | None]:
        if not ids:
            return []
        found = await self._ask(lambda redis: redis.hmget(self._names[0], list(ids)))
        return cast(list[bytes | None], found)

    async def _read(self, script: Script, *args: bytes | str | float) -> Any:
        return await self._ask(lambda redis: script.run(redis, self._names, (self._now(), *args)))


def _words(job: Job, *, hit: bool = True) -> Words:
    """Return a new record as scripts take it; hit: whether it was complete when it came, if it is complete."""
    kind = ("hit" if hit else "ended") if job.status.is_final else "open"
    return [job.id, job.to_json(), repr(job.created_at), milliseconds(job.expires_at), kind]


def _member(job_id: str) -> bytes:
    return job_id.encode("utf-8", "surrogatepass")  # as a client gave it


def _creation(job_id: str) -> str:
    created = created_at(job_id)
    return "" if created is None else repr(created)


def _answer(mark: Mark, digest: bytes, job_id: bytes) -> str | None:
    return mark.answer(digest.decode(), job_id.decode())
