"""The blocking Python client; `async_client` has the same methods, awaited.

    with Encore() as encore:
        video = encore.generate("a red circle moves left", seed=7, on_progress=print)

Requests are built and answers read by the pure functions in `calls`; here they are only carried out. Every failure
is one of serve_app.errors; there are no retries, because only the caller knows what a second try is worth (of `create`
with an `idempotency_key` it is harmless). Reading events goes on over connections that break.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Self, TypeVar, Unpack

import httpx

from serve_app.client import calls, error_mapping
from serve_app.client.calls import Call, Choice, Fields, Order, Pause, Steps, Variant
from serve_app.client.connection import Connection
from serve_app.client.event_following import Follow
from serve_app.client.replies import (
    Explanation,
    Generated,
    Invalidated,
    Invalidation,
    Job,
    JobEvent,
    JobPage,
    Model,
    WarmEstimate,
    WarmUp,
)
from serve_app.errors import EncoreError

T = TypeVar("T")
OnProgress = Callable[[int], None]

POLL_INTERVAL = 0.25  # seconds; a poll costs the server about a millisecond


class Encore:
    """The blocking client; threads may share it. Close it, or use it as a context manager.

    base_url: the server, else the environment's ENCORE_URL, else http://127.0.0.1:8000; nothing is sent before the
    first call. timeout: seconds of silence after which a call is given up (connecting: at most 5); render_timeout:
    the same for a whole render. headers: sent with every call, for an operator's gateway.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        timeout: float = 30.0,
        render_timeout: float = 600.0,
        headers: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = Connection.to(base_url, timeout, render_timeout, headers)
        self._http = self._connection.open(httpx.Client, transport)
        self._sleep = sleep
        self._clock = clock

    @property
    def base_url(self) -> str:
        """The server's address."""
        return self._connection.base_url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def create(self, prompt: str, *, idempotency_key: str | None = None, **fields: Unpack[Fields]) -> Job:
        """Ask for a video and return its job at once.

        With a key of the caller's own the same call again, within a day, returns the first one's job, so that who got
        no answer may ask again; with other fields it is KeyReused.
        """
        return self._send(calls.create(prompt, fields, idempotency_key))

    def retrieve(self, video_id: str) -> Job:
        """Look at a job; NotFound when there is none."""
        return self._send(calls.retrieve(video_id))

    def events(self, video_id: str) -> Iterator[JobEvent]:
        """Yield what happens to a job as it happens, from its present state to its end.

        A connection that breaks is opened again, to go on after the last event. Raises NotFound when there is no such
        job, Unavailable when the server does not come back.
        """
        follow = Follow(video_id)
        while True:
            broken: EncoreError | None = None
            try:
                yield from self._read(follow)
            except EncoreError as error:
                broken = error
            if follow.done:
                return
            self._sleep(follow.pause(broken))

    def list(self, *, after: str | None = None, limit: int | None = None, order: Order | None = None) -> JobPage:
        """Return one page of the jobs, newest first unless `order` is `asc`, after the job with id `after`."""
        return self._send(calls.list_jobs(after, limit, order))

    def list_all(self, *, limit: int | None = None, order: Order | None = None) -> Iterator[Job]:
        """Yield every job, fetching pages of `limit` as they are needed."""
        after: str | None = None
        while True:
            page = self.list(after=after, limit=limit, order=order)
            yield from page.data
            after = page.last_id
            if not page.has_more or after is None:
                return

    def delete(self, video_id: str) -> bool:
        """Delete a job; a render in progress is cancelled unless others wait for it."""
        return self._send(calls.delete(video_id))

    def content(self, video_id: str, *, variant: Variant = "video") -> bytes:
        """Return the MP4 file of a completed job, its `thumbnail` (WebP) or its `spritesheet` (JPEG)."""
        return self._send(calls.content(video_id, variant))

    def generate(
        self,
        prompt: str,
        *,
        on_progress: OnProgress | None = None,
        poll_interval: float = POLL_INTERVAL,
        **fields: Unpack[Fields],
    ) -> Generated:
        """Create a job, follow it and download its file.

        `on_progress` gets the render's percentage whenever it changed. Raises what the job failed with; Unavailable
        after `render_timeout`, while the job goes on.
        """
        timeout = self._connection.render_timeout
        return self._drive(calls.generation(prompt, fields, on_progress, poll_interval, timeout, self._clock))

    def generate_sync(self, prompt: str, **fields: Unpack[Fields]) -> Generated:
        """Return the video of one single exchange: the quickest way to a cached one, and no job is made."""
        started = self._clock()
        return calls.timed(self._send(calls.sync(prompt, fields)), self._clock() - started)

    def explain(self, prompt: str, **fields: Unpack[Fields]) -> Explanation:
        """Return what a request means, its keys, and which tiers hold the video; nothing is rendered."""
        return self._send(calls.explain(prompt, fields))

    def invalidate(self, key: str) -> Invalidated:
        """Remove a key from every tier."""
        return self._send(calls.invalidate(key))

    def invalidate_where(self, **choice: Unpack[Choice]) -> Invalidation:
        """Let all that is chosen count as not there, everywhere within a second: by key, prompt, model, tag, age."""
        return self._send(calls.invalidate_where(choice))

    def warm(self, templates: Sequence[Mapping[str, Any]], *, ttl: str | float | None = None) -> WarmUp:
        """Begin to make and store every video that `templates` stand for, and return at once.

        A template: a prompt with variables in braces, `variables` (lists by name), other request fields, maybe `ttl`.
        ttl: how long L2 keeps what is not asked for, seconds or `3d`. Raises Unprocessable, and Busy while too many
        run.
        """
        return self._send(calls.warm(templates, ttl))

    def warm_estimate(self, templates: Sequence[Mapping[str, Any]], *, ttl: str | float | None = None) -> WarmEstimate:
        """Return what `warm` would find there, and what it would render; renders nothing."""
        return self._send(calls.warm_estimate(templates, ttl))

    def warm_up(self, warm_up_id: str) -> WarmUp:
        """Look how far a warm-up is; NotFound when there is none."""
        return self._send(calls.warm_up(warm_up_id))

    def cancel_warm_up(self, warm_up_id: str) -> WarmUp:
        """End a warm-up; what it has made stays."""
        return self._send(calls.cancel_warm_up(warm_up_id))

    def models(self) -> tuple[Model, ...]:
        """Return the models on offer."""
        return self._send(calls.models())

    def stats(self) -> dict[str, Any]:
        """Return the server's counters."""
        return self._send(calls.stats())

    def health(self) -> bool:
        """Return whether the server says that it is well; Unavailable when nothing answers."""
        return self._send(calls.health())

    def _send(self, call: Call[T]) -> T:
        request = self._connection.request(self._http, call)
        try:
            response = self._http.send(request, follow_redirects=call.redirected)
        except httpx.RequestError as error:
            raise error_mapping.of_transport(error, self.base_url) from error
        return call.answer(response)

    def _read(self, follow: Follow) -> Iterator[JobEvent]:
        request = self._connection.request(self._http, follow.call())
        try:
            with closing(self._http.send(request, stream=True)) as response:
                if not response.is_success:
                    response.read()
                follow.opened(response)
                for data in response.iter_bytes():
                    yield from follow.read(data, response)
                    if follow.done:
                        return
        except httpx.RequestError as error:
            raise error_mapping.of_transport(error, self.base_url) from error

    def _drive(self, steps: Steps[T]) -> T:
        answer: Any = None
        failure: EncoreError | None = None
        while True:
            try:
                step = steps.send(answer) if failure is None else steps.throw(failure)
            except StopIteration as stop:
                result: T = stop.value
                return result
            answer = failure = None
            try:
                answer = self._sleep(step.seconds) if isinstance(step, Pause) else self._send(step)
            except EncoreError as error:
                failure = error
