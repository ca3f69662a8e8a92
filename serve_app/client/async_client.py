"""The awaited Python client: `client.Encore` once more, for programs with an event loop.

    async with AsyncEncore() as encore:
        video = await encore.generate("a red circle moves left", seed=7)

Nothing is decided here: one contract suite runs over both clients, so that they cannot drift apart.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Self, TypeVar, Unpack

import httpx

from serve_app.client import calls, error_mapping
from serve_app.client.calls import Call, Choice, Fields, Order, Pause, Steps, Variant
from serve_app.client.client import POLL_INTERVAL, OnProgress
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


class AsyncEncore:
    """The awaited client for one event loop; parameters and methods are those of `Encore`."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        timeout: float = 30.0,
        render_timeout: float = 600.0,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = Connection.to(base_url, timeout, render_timeout, headers)
        self._http = self._connection.open(httpx.AsyncClient, transport)
        self._sleep = sleep
        self._clock = clock

    @property
    def base_url(self) -> str:
        """The server's address."""
        return self._connection.base_url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def create(self, prompt: str, *, idempotency_key: str | None = None, **fields: Unpack[Fields]) -> Job:
        """Ask for a video and return its job at once; see `Encore.create`."""
        return await self._send(calls.create(prompt, fields, idempotency_key))

    async def retrieve(self, video_id: str) -> Job:
        """Look at a job; NotFound when there is none."""
        return await self._send(calls.retrieve(video_id))

    async def events(self, video_id: str) -> AsyncIterator[JobEvent]:
        """Yield what happens to a job as it happens, to its end; see `Encore.events`."""
        follow = Follow(video_id)
        while True:
            broken: EncoreError | None = None
            try:
                async with aclosing(self._read(follow)) as told:
                    async for event in told:
                        yield event
            except EncoreError as error:
                broken = error
            if follow.done:
                return
            await self._sleep(follow.pause(broken))

    async def list(self, *, after: str | None = None, limit: int | None = None, order: Order | None = None) -> JobPage:
        """Return one page of the jobs, newest first unless `order` is `asc`, after the job with id `after`."""
        return await self._send(calls.list_jobs(after, limit, order))

    async def list_all(self, *, limit: int | None = None, order: Order | None = None) -> AsyncIterator[Job]:
        """Yield every job, fetching pages of `limit` as they are needed."""
        after: str | None = None
        while True:
            page = await self.list(after=after, limit=limit, order=order)
            for job in page.data:
                yield job
            after = page.last_id
            if not page.has_more or after is None:
                return

    async def delete(self, video_id: str) -> bool:
        """Delete a job; a render in progress is cancelled unless others wait for it."""
        return await self._send(calls.delete(video_id))

    async def content(self, video_id: str, *, variant: Variant = "video") -> bytes:
        """Return the MP4 file of a completed job, its `thumbnail` (WebP) or its `spritesheet` (JPEG)."""
        return await self._send(calls.content(video_id, variant))

    async def generate(
        self,
        prompt: str,
        *,
        on_progress: OnProgress | None = None,
        poll_interval: float = POLL_INTERVAL,
        **fields: Unpack[Fields],
    ) -> Generated:
        """Create a job, follow it and download its file; see `Encore.generate`."""
        timeout = self._connection.render_timeout
        return await self._drive(calls.generation(prompt, fields, on_progress, poll_interval, timeout, self._clock))

    async def generate_sync(self, prompt: str, **fields: Unpack[Fields]) -> Generated:
        """Return the video of one single exchange; see `Encore.generate_sync`."""
        started = self._clock()
        generated = await self._send(calls.sync(prompt, fields))
        return calls.timed(generated, self._clock() - started)

    async def explain(self, prompt: str, **fields: Unpack[Fields]) -> Explanation:
        """Return what a request means, its keys, and which tiers hold the video; nothing is rendered."""
        return await self._send(calls.explain(prompt, fields))

    async def invalidate(self, key: str) -> Invalidated:
        """Remove a key from every tier."""
        return await self._send(calls.invalidate(key))

    async def invalidate_where(self, **choice: Unpack[Choice]) -> Invalidation:
        """Let all that is chosen count as not there, everywhere within a second: by key, prompt, model, tag, age."""
        return await self._send(calls.invalidate_where(choice))

    async def warm(self, templates: Sequence[Mapping[str, Any]], *, ttl: str | float | None = None) -> WarmUp:
        """Begin to make and store every video that `templates` stand for, and return at once.

        A template: a prompt with variables in braces, `variables` (lists by name), other request fields, maybe `ttl`.
        ttl: how long L2 keeps what is not asked for, seconds or `3d`. Raises Unprocessable, and Busy while too many
        run.
        """
        return await self._send(calls.warm(templates, ttl))

    async def warm_estimate(
        self, templates: Sequence[Mapping[str, Any]], *, ttl: str | float | None = None
    ) -> WarmEstimate:
        """Return what `warm` would find there, and what it would render; renders nothing."""
        return await self._send(calls.warm_estimate(templates, ttl))

    async def warm_up(self, warm_up_id: str) -> WarmUp:
        """Look how far a warm-up is; NotFound when there is none."""
        return await self._send(calls.warm_up(warm_up_id))

    async def cancel_warm_up(self, warm_up_id: str) -> WarmUp:
        """End a warm-up; what it has made stays."""
        return await self._send(calls.cancel_warm_up(warm_up_id))

    async def models(self) -> tuple[Model, ...]:
        """Return the models on offer."""
        return await self._send(calls.models())

    async def stats(self) -> dict[str, Any]:
        """Return the server's counters."""
        return await self._send(calls.stats())

    async def health(self) -> bool:
        """Return whether the server says that it is well; Unavailable when nothing answers."""
        return await self._send(calls.health())

    async def _send(self, call: Call[T]) -> T:
        request = self._connection.request(self._http, call)
        try:
            response = await self._http.send(request, follow_redirects=call.redirected)
        except httpx.RequestError as error:
            raise error_mapping.of_transport(error, self.base_url) from error
        return call.answer(response)

    async def _read(self, follow: Follow) -> AsyncGenerator[JobEvent, None]:
        request = self._connection.request(self._http, follow.call())
        try:
            response = await self._http.send(request, stream=True)
            try:
                if not response.is_success:
                    await response.aread()
                follow.opened(response)
                async for data in response.aiter_bytes():
                    for event in follow.read(data, response):
                        yield event
                    if follow.done:
                        return
            finally:
                await response.aclose()
        except httpx.RequestError as error:
            raise error_mapping.of_transport(error, self.base_url) from error

    async def _drive(self, steps: Steps[T]) -> T:
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
                answer = await (self._sleep(step.seconds) if isinstance(step, Pause) else self._send(step))
            except EncoreError as error:
                failure = error
