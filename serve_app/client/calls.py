"""Every call of the API once, as a value: what to send and how to read the answer.

These are pure functions, so the sync and the async client share all of it and differ only in how a call is carried
out. `generation` is a conversation of several calls; it is a generator that asks its driver for calls and pauses,
as httpx's own authentication flows do.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

import httpx

from serve_app.client import error_mapping, replies
from serve_app.client.image import Image, data_url
from serve_app.client.replies import (
    Explanation,
    Generated,
    Invalidated,
    Invalidation,
    Job,
    JobPage,
    Model,
    WarmEstimate,
    WarmUp,
)
from serve_app.core import JobStatus
from serve_app.errors import Busy, EncoreError, Unavailable

T = TypeVar("T")
Order = Literal["asc", "desc"]
Variant = Literal["video", "thumbnail", "spritesheet"]

OUTAGE_SECONDS = 120.0
"""How long an accepted job is asked for while the server is away: longer than it takes to start."""
RETRY_SECONDS = 1.0
SILENCE_SECONDS = 45.0
"""Of a stream of events; the server gives a sign of life every 15 seconds."""


class Fields(TypedDict, total=False):
    """What a request may say beside the prompt; None is the same as absent. Defaults and ranges are the model's."""

    negative_prompt: str | None
    model: str | None
    seed: int | Literal["random"] | None
    size: str | None
    width: int | None
    height: int | None
    num_frames: int | None
    seconds: float | str | None
    fps: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    quality: int | None
    correct_typos: bool | None
    priority: Literal["interactive", "batch", "warm_up"] | None
    deadline_seconds: float | None
    tags: Sequence[str] | None
    metadata: Mapping[str, str] | None
    user: str | None
    safety_identifier: str | None
    n: Literal[1] | None
    input_reference: Image | None


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One HTTP exchange. A `slow` one may last as long as a render; any may be silent for `patience` seconds.

    A `redirected` one may be answered by another server, which gets no credentials of this one.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    params: Mapping[str, str | int] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None
    slow: bool = False
    redirected: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    patience: float = 0.0

    def answer(self, response: httpx.Response) -> T:
        """Read the answer, or raise the error it stands for."""
        if not response.is_success:
            raise error_mapping.of_response(response)
        try:
            return self.read(response)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise error_mapping.of_reply(error, response) from error


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait before the next call."""

    seconds: float


def create(prompt: str, fields: Fields, idempotency_key: str | None = None) -> Call[Job]:
    """Ask for a video; the answer is its job."""
    headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
    return Call("POST", "/v1/videos", replies.job, json=_body(prompt, fields), headers=headers)


def retrieve(video_id: str) -> Call[Job]:
    """Look at a job."""
    return Call("GET", _video(video_id), replies.job)


def follow(video_id: str, last_id: str | None) -> Call[None]:
    """Follow a job's events, after the one with id `last_id`."""
    headers = {"Accept": "text/event-stream"} | ({} if last_id is None else {"Last-Event-ID": last_id})
    return Call("GET", f"{_video(video_id)}/events", replies.nothing, headers=headers, patience=SILENCE_SECONDS)


def list_jobs(after: str | None, limit: int | None, order: Order | None) -> Call[JobPage]:
    """Read one page of the jobs."""
    asked = {"after": after, "limit": limit, "order": order}
    return Call("GET", "/v1/videos", replies.page, params={k: v for k, v in asked.items() if v is not None})


def delete(video_id: str) -> Call[bool]:
    """Delete a job, and cancel its render unless others wait for it."""
    return Call("DELETE", _video(video_id), replies.deleted)


def content(video_id: str, variant: Variant = "video") -> Call[bytes]:
    """Download a finished video, or a picture of it."""
    params = {} if variant == "video" else {"variant": variant}
    return Call("GET", f"{_video(video_id)}/content", replies.content, params=params, redirected=True)


def sync(prompt: str, fields: Fields) -> Call[Generated]:
    """Ask for a video and wait for the file in one exchange."""
    return Call("POST", "/v1/videos/sync", replies.video, json=_body(prompt, fields), slow=True)


def explain(prompt: str, fields: Fields) -> Call[Explanation]:
    """Ask what a request means, without rendering."""
    return Call("POST", "/v1/explain", replies.explanation, json=_body(prompt, fields))


def invalidate(key: str) -> Call[Invalidated]:
    """Remove a key from all tiers."""
    return Call("POST", "/invalidate", replies.invalidated, params={"key": key})


class Choice(TypedDict, total=False):
    """What to invalidate: exactly one of these; `model` may go with `prompt`."""

    key: str
    prompt: str
    model: str
    fingerprint: str
    tag: str
    older_than_seconds: float


def invalidate_where(choice: Choice) -> Call[Invalidation]:
    """Invalidate whatever is chosen."""
    return Call("POST", "/v1/cache/invalidate", replies.invalidation, json=dict(choice))


def warm(templates: Sequence[Mapping[str, Any]], ttl: str | float | None) -> Call[WarmUp]:
    """Begin a warm-up."""
    return Call("POST", "/v1/cache/warm", replies.warm_up, json=_templates(templates, ttl), slow=True)


def warm_estimate(templates: Sequence[Mapping[str, Any]], ttl: str | float | None) -> Call[WarmEstimate]:
    """Ask what a warm-up would do."""
    body = _templates(templates, ttl) | {"dry_run": True}
    return Call("POST", "/v1/cache/warm", replies.warm_estimate, json=body, slow=True)


def warm_up(warm_up_id: str) -> Call[WarmUp]:
    """Look how far a warm-up is."""
    return Call("GET", f"/v1/cache/warm/{quote(warm_up_id, safe='')}", replies.warm_up)


def cancel_warm_up(warm_up_id: str) -> Call[WarmUp]:
    """End a warm-up."""
    return Call("DELETE", f"/v1/cache/warm/{quote(warm_up_id, safe='')}", replies.warm_up)


def _templates(templates: Sequence[Mapping[str, Any]], ttl: str | float | None) -> dict[str, Any]:
    return {"templates": [dict(each) for each in templates]} | ({} if ttl is None else {"ttl": ttl})


def models() -> Call[tuple[Model, ...]]:
    """List the models."""
    return Call("GET", "/v1/models", replies.models)


def stats() -> Call[dict[str, Any]]:
    """Read the server's counters."""
    return Call("GET", "/v1/stats", replies.figures)


def health() -> Call[bool]:
    """Ask whether the server is well."""
    return Call("GET", "/healthz", replies.healthy)


Steps = Generator[Call[Any] | Pause, Any, T]


def generation(
    prompt: str,
    fields: Fields,
    on_progress: Callable[[int], None] | None,
    poll_interval: float,
    render_timeout: float,
    clock: Callable[[], float],
) -> Steps[Generated]:
    """Create a job, follow it to its end, download the file; the driver carries out what is yielded.

    Once the job is accepted, a server that is away is waited for. Raises the error the job failed with, or Unavailable
    (the job goes on) after `render_timeout` seconds.
    """
    started = clock()
    job: Job = yield create(prompt, fields)
    told = _tell(on_progress, job, -1)
    while not job.status.is_final:
        if clock() - started > render_timeout:
            raise Unavailable(f"Job {job.id} is still {job.status} at {job.progress} % after {render_timeout:g} s.")
        yield Pause(poll_interval)
        job = yield from _patiently(retrieve(job.id), clock)
        told = _tell(on_progress, job, told)
    if job.status is JobStatus.FAILED:
        raise _failure(job)
    data = yield from _patiently(content(job.id), clock)
    return _generated(job, data, clock() - started)


def _patiently(call: Call[T], clock: Callable[[], float]) -> Steps[T]:
    """Make a call that changes nothing, again and again for as long as a restart of the server may take.

    Raises the last Unavailable or Busy after OUTAGE_SECONDS, any other error at once.
    """
    since: float | None = None
    while True:
        try:
            answer: T = yield call
        except (Busy, Unavailable) as error:
            since = clock() if since is None else since
            if clock() - since > OUTAGE_SECONDS:
                raise
            yield Pause(RETRY_SECONDS if error.retry_after is None else float(error.retry_after))
        else:
            return answer


def timed(generated: Generated, seconds: float) -> Generated:
    """Add how long the caller waited."""
    return replace(generated, seconds=seconds)


def _tell(on_progress: Callable[[int], None] | None, job: Job, told: int) -> int:
    if on_progress is not None and job.progress != told and job.status is not JobStatus.FAILED:
        on_progress(job.progress)
    return job.progress


def _failure(job: Job) -> EncoreError:
    if job.error is None:
        return error_mapping.of_job("", f"Job {job.id} failed without saying why.")
    return error_mapping.of_job(job.error.code, job.error.message)


def _generated(job: Job, data: bytes, seconds: float) -> Generated:
    if job.cache is None or job.cache.outcome is None or job.cache.key is None:
        raise EncoreError(f"Job {job.id} is completed but does not say how it was made.")
    return Generated(data, job.cache.outcome, job.cache.key, job.cache.embedding, seconds, job, notice=job.notice)


def _video(video_id: str) -> str:
    return f"/v1/videos/{quote(video_id, safe='')}"


def _body(prompt: str, fields: Fields) -> dict[str, Any]:
    body = {"prompt": prompt, **{name: value for name, value in fields.items() if value is not None}}
    image = fields.get("input_reference")
    return body if image is None else body | {"input_reference": {"image_url": data_url(image)}}
