"""Job records: what `GET /v1/videos/{id}` shows, and enough (the whole spec) to finish the job after a crash.

Two stores with one contract: in this process' memory, and in Redis, where every router replica sees them. A change of
a record is an update of an existing one, never a creation, so that a follower on one replica cannot bring back a job
that was deleted through another: the update says so, and the follower stops.
"""

from __future__ import annotations

import bisect
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

from serve_app.core import JobStatus, Keys, Outcome, Priority, Urgency, VideoSpec
from serve_app.errors import NotFound
from serve_app.prompt.typos import Correction

Order = Literal["asc", "desc"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One accepted request. Times are Unix seconds; `prompt` is as it was typed; `urgency` outlives its follower."""

    id: str
    prompt: str
    spec: VideoSpec
    keys: Keys
    created_at: float
    updated_at: float
    expires_at: float
    status: JobStatus = JobStatus.QUEUED
    progress: int = 0
    completed_at: float | None = None
    outcome: Outcome | None = None
    embedding: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    corrected: tuple[Correction, ...] = ()
    urgency: Urgency = field(default_factory=Urgency)

    def completed(self, outcome: Outcome, embedding: str | None, now: float) -> Job:
        """Return this job with its video ready."""
        return replace(
            self, status=JobStatus.COMPLETED, progress=100, completed_at=now, updated_at=now,
            outcome=outcome, embedding=embedding,
        )  # fmt: skip

    def failed(self, code: str, message: str, now: float) -> Job:
        """Return this job failed for good."""
        return replace(
            self, status=JobStatus.FAILED, completed_at=now, updated_at=now, error_code=code, error_message=message
        )

    def to_json(self) -> bytes:
        """Return the record as bytes."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Job:
        """Read a record written by `to_json`, also one of a release that knew neither corrections nor urgency."""
        fields: dict[str, Any] = json.loads(data)
        outcome = fields["outcome"]
        return cls(
            **fields | {
                "spec": VideoSpec(**fields["spec"]),
                "keys": Keys(**fields["keys"]),
                "corrected": tuple(Correction(**each) for each in fields.get("corrected", ())),
                "urgency": _urgency(fields.get("urgency")),
                "status": JobStatus(fields["status"]),
                "outcome": None if outcome is None else Outcome(outcome),
            }
        )  # fmt: skip


def _urgency(fields: dict[str, Any] | None) -> Urgency:
    return Urgency() if fields is None else Urgency(Priority(fields["priority"]), fields["deadline"])


@dataclass(frozen=True, slots=True)
class Page:
    """One page of jobs and whether more follow."""

    jobs: tuple[Job, ...]
    has_more: bool


class JobStore(Protocol):
    """Where job records live."""

    async def add(self, *jobs: Job) -> None:
        """Store new records; when this returns they are accepted. One that exists or was deleted stays so."""
        ...

    async def update(self, job: Job) -> bool:
        """Replace the record, or store it anew if it was lost; False when the job was deleted."""
        ...

    async def get(self, job_id: str) -> Job | None:
        """Return the record, None if there is none; raises NotFound if it was deleted."""
        ...

    async def delete(self, job_id: str) -> bool:
        """Delete the record, remember that it was deleted; False when there was none."""
        ...

    async def page(self, *, after: str | None, limit: int, order: Order) -> Page:
        """Return up to `limit` jobs by creation time; raises NotFound if `after` is unknown."""
        ...

    async def aclose(self) -> None:
        """Close connections."""
        ...


class MemoryJobs:
    """Job records of one process, the oldest forgotten beyond `max_jobs`."""

    def __init__(self, max_jobs: int = 100_000) -> None:
        self._max_jobs = max_jobs
        self._jobs: dict[str, Job] = {}
        self._order: list[tuple[float, str]] = []
        self._deleted: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    async def add(self, *jobs: Job) -> None:
        """Store new records, but none that there is or that was deleted."""
        for job in jobs:
            if job.id not in self._jobs and job.id not in self._deleted:
                self._jobs[job.id] = job
                bisect.insort(self._order, (job.created_at, job.id))
        while len(self._order) > self._max_jobs:
            _, oldest = self._order.pop(0)
            del self._jobs[oldest]

    async def update(self, job: Job) -> bool:
        """Replace the record or store it anew, unless it was deleted."""
        if job.id in self._deleted:
            return False
        await self.add(job)
        self._jobs[job.id] = job
        return True

    def was_deleted(self, job_id: str) -> bool:
        """Tell whether the job was deleted here."""
        return job_id in self._deleted

    async def get(self, job_id: str) -> Job | None:
        """Return the record or None; NotFound if it was deleted."""
        if job_id in self._deleted:
            raise gone(job_id)
        return self._jobs.get(job_id)

    async def delete(self, job_id: str) -> bool:
        """Delete the record and remember that it was deleted."""
        self._deleted[job_id] = None
        while len(self._deleted) > self._max_jobs:
            del self._deleted[next(iter(self._deleted))]
        job = self._jobs.pop(job_id, None)
        if job is not None:
            del self._order[bisect.bisect_left(self._order, (job.created_at, job.id))]
        return job is not None

    async def page(self, *, after: str | None, limit: int, order: Order) -> Page:
        """Return up to `limit` jobs by creation time."""
        start = 0
        ordered = self._order if order == "asc" else self._order[::-1]
        if after is not None:
            job = self._jobs.get(after)
            if job is None:
                raise unknown(after)
            start = ordered.index((job.created_at, job.id)) + 1
        found = [self._jobs[job_id] for _, job_id in ordered[start : start + limit + 1]]
        return Page(tuple(found[:limit]), len(found) > limit)

    async def aclose(self) -> None:
        """Nothing to close."""


def unknown(job_id: str) -> NotFound:
    """Return the error for an id that names no job."""
    return NotFound(f"There is no video '{job_id[:100]}'.", param="video_id")


def gone(job_id: str) -> NotFound:
    """Return the error for a job that was deleted."""
    return NotFound(f"Video '{job_id[:100]}' was deleted.", param="video_id")
