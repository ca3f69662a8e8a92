"""A job's life as server-sent events (WHATWG HTML, section 9.2): one event at a time, and the reader sets the pace.

The next event is made when the connection took the one before, so a slow reader has the newest state waiting for it and
not a queue. When the reader leaves, the generator behind it is closed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from starlette.responses import StreamingResponse
from starlette.types import Send

from serve_app.api.wire_objects import event_object
from serve_app.service.jobs.events import JobEvent

RETRY_MILLISECONDS = 1000
"""After how long a browser whose connection broke comes back, to whatever replica answers."""
_KEEP_ALIVE = ": still here\n\n"


class EventStream(StreamingResponse):
    """The answer that sends events as they happen, and a comment where the service yields None."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[JobEvent | None]) -> None:
        super().__init__(_frames(events), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def stream_response(self, send: Send) -> None:
        """Send all, and close what makes the events however that ends."""
        async with aclosing(cast(AsyncGenerator[Any, None], self.body_iterator)):
            await super().stream_response(send)


async def _frames(events: AsyncIterator[JobEvent | None]) -> AsyncIterator[str]:
    async with aclosing(cast(AsyncGenerator[JobEvent | None, None], events)) as told:
        yield f"retry: {RETRY_MILLISECONDS}\n\n"
        async for event in told:
            yield _KEEP_ALIVE if event is None else _frame(event)


def _frame(event: JobEvent) -> str:
    return f"id: {event.position}\nevent: {event.name}\ndata: {event_object(event).model_dump_json()}\n\n"
