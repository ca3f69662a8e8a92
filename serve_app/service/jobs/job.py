"""The job record: what `GET /v1/videos/{id}` shows, and enough (the whole spec) to finish the job after a crash."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from serve_app.core import JobStatus, Keys, Outcome, Priority, Urgency, VideoSpec
from serve_app.errors import NotFound
from serve_app.prompt.typos import Correction

logger = logging.getLogger(__name__)

Order = Literal["asc", "desc"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One accepted request. Times are Unix seconds; `prompt` is as it was typed; `urgency` outlives its follower.

    `step` of `total_steps` denoising steps is the furthest that any render of it got; None: not known.
    """

    id: str
    prompt: str
    spec: VideoSpec
    keys: Keys
    created_at: float
    updated_at: float
    expires_at: float
    status: JobStatus = JobStatus.QUEUED
    progress: int = 0
    step: int | None = None
    total_steps: int | None = None
    completed_at: float | None = None
    outcome: Outcome | None = None
    embedding: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    corrected: tuple[Correction, ...] = ()
    urgency: Urgency = field(default_factory=Urgency)
    tags: tuple[str, ...] = ()
    attempts: int = 0
    """How many renders of its video ended in the death of their process."""
    metadata: tuple[tuple[str, str], ...] = ()
    notice: str | None = None

    def started(self, embedding: str | None) -> Job:
        """Return this job with its render under way."""
        return replace(self, status=JobStatus.IN_PROGRESS, embedding=embedding or self.embedding)

    def at_step(self, step: int, total: int) -> Job:
        """Return this job as far as `step`; a render that is begun again counts from nought, the job does not."""
        percent = min(99, 100 * step // max(1, total))
        return replace(
            self, status=JobStatus.IN_PROGRESS, progress=max(self.progress, percent),
            step=max(step, self.step or 0), total_steps=total,
        )  # fmt: skip

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
        """Read a record written by `to_json`, also by a release whose jobs had fewer fields or more.

        Raises KeyError, TypeError or ValueError for what is none.
        """
        record: dict[str, Any] = json.loads(data)
        outcome = record["outcome"]
        record |= {
            "spec": VideoSpec(**record["spec"]),
            "keys": Keys(**record["keys"]),
            "corrected": tuple(Correction(**each) for each in record.get("corrected", ())),
            "urgency": _urgency(record.get("urgency")),
            "tags": tuple(record.get("tags", ())),
            "metadata": tuple((name, text) for name, text in record.get("metadata", ())),
            "status": JobStatus(record["status"]),
            "outcome": None if outcome is None else Outcome(outcome),
        }
        return cls(**{each.name: record[each.name] for each in fields(cls) if each.name in record})


def _urgency(record: dict[str, Any] | None) -> Urgency:
    return Urgency() if record is None else Urgency(Priority(record["priority"]), record["deadline"])


@dataclass(frozen=True, slots=True)
class Page:
    """One page of jobs and whether more follow."""

    jobs: tuple[Job, ...]
    has_more: bool


def unknown(job_id: str) -> NotFound:
    """Return the error for an id that names no job."""
    return NotFound(f"There is no video '{job_id[:100]}'.", param="video_id")


def gone(job_id: str) -> NotFound:
    """Return the error for a job that was deleted."""
    return NotFound(f"Video '{job_id[:100]}' was deleted.", param="video_id")


def read_job(data: bytes | None) -> Job | None:
    """Return the job of a record; None for what only another release can read."""
    if data is None:
        return None
    try:
        return Job.from_json(data)
    except (KeyError, TypeError, ValueError) as error:
        logger.warning("a job record cannot be read: %s %s", type(error).__name__, error)
        return None
