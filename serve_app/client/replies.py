"""What the server answers, as frozen values, and the pure functions that read them from JSON.

The names are the wire's. Fields that a newer server adds stay readable in `extra`, so an old client keeps working;
a field that is missing or has another meaning is an EncoreError, never a half-filled value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args
from urllib.parse import unquote

import httpx

from serve_app.core import JobStatus, Outcome


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """How a job was answered: `outcome` (None until it is known), the video's key, and `hit` or `miss` for the text."""

    outcome: Outcome | None
    key: str | None
    embedding: str | None


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed: a stable `code` and a message for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Job:
    """One job. `progress` is in percent, times are Unix seconds, `seconds` is playing time, `size` is WIDTHxHEIGHT.

    notice: what the model may not do as it was asked, in sentences; None where nothing is to be said.
    """

    id: str
    model: str
    status: JobStatus
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None
    prompt: str | None
    seconds: float
    size: str
    seed: int | None
    error: JobError | None
    cache: CacheInfo | None
    notice: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)


EventKind = Literal["queued", "in_progress", "completed", "failed", "deleted"]
EVENTS: tuple[EventKind, ...] = get_args(EventKind)


@dataclass(frozen=True, slots=True)
class JobEvent:
    """What happened to a job, and the job as it is since; None for steps and seconds left that are not known.

    `completed`, `failed` and `deleted` are the last event of a job.
    """

    kind: EventKind
    id: str
    job: Job
    step: int | None
    total_steps: int | None
    eta_seconds: float | None


@dataclass(frozen=True, slots=True)
class JobPage:
    """Part of the list of jobs; the next part starts `after=last_id`."""

    data: tuple[Job, ...]
    first_id: str | None
    last_id: str | None
    has_more: bool


@dataclass(frozen=True, slots=True)
class Generated:
    """A finished video. `seconds` is how long the caller waited; `job` is None when there was one call and no job.

    corrected: (as typed, as read) of each word that was taken for a typing mistake, where there was one call.
    notice: as a job's.
    """

    data: bytes
    outcome: Outcome
    key: str
    embedding: str | None
    seconds: float
    job: Job | None
    corrected: tuple[tuple[str, str], ...] = ()
    notice: str | None = None


@dataclass(frozen=True, slots=True)
class StageKeys:
    """The keys of the chain, each 64 hex digits."""

    prompt: str
    latents: str
    video: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a request means and where it is: `spec` is the resolved VideoSpec, `tiers` maps l1, l2, l3 to whether they
    hold the finished video (None: not known), `notice` is what the job's would be.
    """

    prompt: str
    normalised: str
    spec: Mapping[str, Any]
    keys: StageKeys
    tiers: Mapping[str, bool | None]
    notice: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Invalidated:
    """A key that was removed, and the tiers it was removed from."""

    key: str
    deleted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Invalidation:
    """What counts as not there from now on: what `selector` chose and was begun before `before` (Unix seconds).

    deleted: how many values each tier has lost already; the rest follows in the background. known: whether there is
    such a thing, None where that is not known. epoch: a number that only
    grows with every invalidation.
    """

    selector: str
    before: float
    epoch: int
    deleted: Mapping[str, int]
    known: bool | None = None


@dataclass(frozen=True, slots=True)
class WarmUp:
    """A warm-up: of `total` different videos so many were `there`, are `rendered` by now, or `failed`.

    status: `in_progress`, `completed` or `cancelled`. errors: (prompt, code, message) of the first that failed.
    """

    id: str
    status: str
    total: int
    duplicates: int
    there: int
    rendered: int
    failed: int
    eta_seconds: float | None
    errors: tuple[tuple[str, str, str], ...]
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def done(self) -> int:
        """Videos that are dealt with."""
        return self.there + self.rendered + self.failed

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        return self.status != "in_progress"


@dataclass(frozen=True, slots=True)
class WarmEstimate:
    """What a warm-up would do: of `total` different videos so many are `there`, so many `missing`.

    render_seconds: of one device for all that is missing; None where the server has measured no render yet.
    """

    total: int
    duplicates: int
    there: int
    missing: int
    unknown: int
    seconds_per_render: float | None
    render_seconds: float | None
    missing_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """A model the server offers; everything else it tells about it is in `extra`."""

    id: str
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)


def job(response: httpx.Response) -> Job:
    """Read the job object of `POST /v1/videos` and `GET /v1/videos/{id}`."""
    return job_of(_object(response))


def job_of(body: Mapping[str, Any]) -> Job:
    """Read one job object, alone or out of a list."""
    error, cache = body.get("error"), body.get("cache")
    return Job(
        id=body["id"],
        model=body["model"],
        status=JobStatus(body["status"]),
        progress=int(body["progress"]),
        created_at=int(body["created_at"]),
        completed_at=body.get("completed_at"),
        expires_at=body.get("expires_at"),
        prompt=body.get("prompt"),
        seconds=float(body["seconds"]),
        size=body["size"],
        seed=body.get("seed"),
        error=JobError(error["code"], error["message"]) if error else None,
        cache=_cache(cache) if cache else None,
        notice=body.get("notice"),
        extra=_others(body, Job, "object"),
    )


def event_of(kind: str, event_id: str, body: Mapping[str, Any]) -> JobEvent:
    """Read one event of `GET /v1/videos/{id}/events`, whose `kind` is one of EVENTS."""
    step, total_steps, eta_seconds = (body.get(name) for name in ("step", "total_steps", "eta_seconds"))
    return JobEvent(cast(EventKind, kind), event_id, job_of(body), step, total_steps, eta_seconds)


def nothing(response: httpx.Response) -> None:
    """Read no more than the status; who streams reads the rest."""


def page(response: httpx.Response) -> JobPage:
    """Read `GET /v1/videos`."""
    body = _object(response)
    return JobPage(
        data=tuple(job_of(each) for each in body["data"]),
        first_id=body["first_id"],
        last_id=body["last_id"],
        has_more=bool(body["has_more"]),
    )


def deleted(response: httpx.Response) -> bool:
    """Read `DELETE /v1/videos/{id}`."""
    return bool(_object(response)["deleted"])


def content(response: httpx.Response) -> bytes:
    """Read `GET /v1/videos/{id}/content`."""
    return response.content


def video(response: httpx.Response) -> Generated:
    """Read `POST /v1/videos/sync`: the file is the body, how it was made is in the headers; `seconds` is still 0."""
    return Generated(
        data=response.content,
        outcome=Outcome(response.headers["x-encore-outcome"]),
        key=response.headers["x-encore-key"],
        embedding=response.headers.get("x-encore-embedding"),
        seconds=0.0,
        job=None,
        corrected=_corrected(response.headers.get("x-encore-corrected", "")),
        notice=unquote(response.headers.get("x-encore-notice", "")) or None,
    )


def _corrected(value: str) -> tuple[tuple[str, str], ...]:
    """Read a list of `typed=read` in percent-encoding."""
    pairs = (part.strip().partition("=") for part in value.split(",") if "=" in part)
    return tuple((unquote(typed), unquote(read)) for typed, _, read in pairs)


def explanation(response: httpx.Response) -> Explanation:
    """Read `POST /v1/explain`."""
    body = _object(response)
    keys = body["keys"]
    return Explanation(
        prompt=body["prompt"],
        normalised=body["normalised"],
        spec=dict(body["spec"]),
        keys=StageKeys(keys["prompt"], keys["latents"], keys["video"]),
        tiers=dict(body["tiers"]),
        notice=body.get("notice"),
        extra=_others(body, Explanation),
    )


def invalidated(response: httpx.Response) -> Invalidated:
    """Read `POST /invalidate`."""
    body = _object(response)
    return Invalidated(body["key"], tuple(body["deleted"]))


def invalidation(response: httpx.Response) -> Invalidation:
    """Read `POST /v1/cache/invalidate`."""
    body = _object(response)
    rule = body["rule"]
    return Invalidation(
        rule["selector"], float(rule["before"]), int(body["epoch"]), dict(body["deleted"]), body.get("known")
    )


def warm_up(response: httpx.Response) -> WarmUp:
    """Read `/v1/cache/warm` and `/v1/cache/warm/{id}`."""
    body = _object(response)
    names = ("id", "status", "total", "duplicates", "there", "rendered", "failed", "eta_seconds")
    return WarmUp(
        **{name: body[name] for name in names},
        errors=tuple((each["prompt"], each["code"], each["message"]) for each in body["errors"]),
        extra=_others(body, WarmUp, "object"),
    )


def warm_estimate(response: httpx.Response) -> WarmEstimate:
    """Read `/v1/cache/warm` of a dry run."""
    body = _object(response)
    names = ("total", "duplicates", "there", "missing", "unknown", "seconds_per_render", "render_seconds")
    return WarmEstimate(**{name: body[name] for name in names}, missing_keys=tuple(body["missing_keys"]))


def models(response: httpx.Response) -> tuple[Model, ...]:
    """Read `GET /v1/models`."""
    return tuple(Model(each["id"], _others(each, Model, "object")) for each in _object(response)["data"])


def figures(response: httpx.Response) -> dict[str, Any]:
    """Read an open-ended object (`GET /v1/stats`)."""
    return _object(response)


def healthy(response: httpx.Response) -> bool:
    """Read `GET /healthz`."""
    return bool(_object(response)["status"] == "ok")


def _object(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    if not isinstance(body, dict):
        raise TypeError("the body is not a JSON object")
    return body


def _cache(body: Mapping[str, Any]) -> CacheInfo:
    outcome = body.get("outcome")
    return CacheInfo(Outcome(outcome) if outcome else None, body.get("key"), body.get("embedding"))


def _others(body: Mapping[str, Any], known: type, *ignored: str) -> dict[str, Any]:
    names = {*known.__dataclass_fields__, *ignored}  # type: ignore[attr-defined]
    return {name: value for name, value in body.items() if name not in names}
