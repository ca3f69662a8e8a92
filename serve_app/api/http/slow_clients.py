"""Bounds on clients that hold a place for long: those that send a body slowly, and those that read a job's events.

Serve lets a router work on `max_ongoing_requests` at once, whatever they do, and beyond that a hit waits behind a
client that sends nothing. So a body has a time in which it must arrive, as a whole and between two pieces, and slow
bodies and readers of events have bounds of their own, well below that number; beyond them it is 503 with Retry-After.
A body that has arrived already, as every small one has behind HAProxy, is never refused for the slow ones.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.error_responses import failure_response
from serve_app.errors import RequestTimeout, Unavailable

RETRY_AFTER = 5
AT_ONCE_SECONDS = 0.05
"""A body that is there needs less."""


class SlowClients:
    """ASGI middleware; `idle_timeout` is between two pieces of a body, `body_timeout` for the whole of it."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        body_timeout: float = 120.0,
        idle_timeout: float = 60.0,
        max_slow_bodies: int = 500,
        max_event_streams: int = 1_000,
    ) -> None:
        self._app = app
        self._body_timeout = body_timeout
        self._idle_timeout = idle_timeout
        self._max_slow_bodies = max_slow_bodies
        self._max_event_streams = max_event_streams
        self._waiting = 0
        self._streams = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, if there is room for one of its kind."""
        if scope["type"] == "http" and scope["method"] == "GET" and scope["path"].endswith("/events"):
            await self._stream(scope, receive, send)
        elif scope["type"] == "http" and scope["method"] not in ("GET", "HEAD"):
            await self._app(scope, self._bounded(receive), send)
        else:
            await self._app(scope, receive, send)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._streams >= self._max_event_streams:
            text = f"{self._streams} readers follow events here already (setting max_event_streams); poll, or try again"
            await failure_response(Unavailable(f"{text} in {RETRY_AFTER} s.", retry_after=RETRY_AFTER))(
                scope, receive, send
            )
            return
        self._streams += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._streams -= 1

    def _bounded(self, receive: Receive) -> Receive:
        deadline = asyncio.get_running_loop().time() + self._body_timeout
        complete = False

        async def bounded() -> Message:
            nonlocal complete
            if complete:  # what comes now is the client's leaving
                return await receive()
            message = await self._piece(receive, deadline)
            complete = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        return bounded

    async def _piece(self, receive: Receive, deadline: float) -> Message:
        left = min(self._idle_timeout, deadline - asyncio.get_running_loop().time())
        crowded = self._waiting >= self._max_slow_bodies
        self._waiting += 1
        try:
            return await asyncio.wait_for(receive(), AT_ONCE_SECONDS if crowded else max(0.0, left))
        except TimeoutError:
            if crowded:
                text = "Too many clients are sending requests slowly (setting max_slow_bodies); try again"
                raise Unavailable(f"{text} in {RETRY_AFTER} s.", retry_after=RETRY_AFTER) from None
            raise RequestTimeout(
                "The body took too long to arrive (settings client_body_timeout_seconds, client_idle_timeout_seconds)."
            ) from None
        finally:
            self._waiting -= 1
