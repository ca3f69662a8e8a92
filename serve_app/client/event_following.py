"""Following a job's server-sent events over as many connections as it takes; both clients only carry it out.

`Follow` says what to send, reads line after line, and decides what a connection that ended means: go on after the last
event that was read, or give up. The form is that of WHATWG HTML, section 9.2, as far as Encore's server uses it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx

from serve_app.client import error_mapping, replies
from serve_app.client.calls import Call, follow
from serve_app.client.replies import EVENTS, JobEvent
from serve_app.errors import Busy, EncoreError, Unavailable

TRIES = 5
"""Connections in a row that may fail, or end, without an event, before it is given up."""
RETRY_SECONDS = 1.0
_FINAL = ("completed", "failed", "deleted")


class Follow:
    """One reading of one job's events."""

    def __init__(self, video_id: str) -> None:
        self.done = False
        self._video_id = video_id
        self._last_id: str | None = None
        self._retry = RETRY_SECONDS
        self._begun = False
        self._tries = 0
        self._block: dict[str, str] = {}
        self._rest = b""

    def call(self) -> Call[None]:
        """Return the exchange that opens the stream, after the last event that was read."""
        return follow(self._video_id, self._last_id)

    def opened(self, response: httpx.Response) -> None:
        """Take in the head of an answer; raises the error it stands for."""
        self._block, self._rest = {}, b""
        if not response.is_success:
            raise error_mapping.of_response(response)
        self._begun = True
        self.done = response.status_code == httpx.codes.NO_CONTENT
        if not self.done and not response.headers.get("content-type", "").startswith("text/event-stream"):
            raise error_mapping.of_reply(ValueError("no event stream"), response)

    def read(self, data: bytes, response: httpx.Response) -> Iterator[JobEvent]:
        """Take in what arrived, and yield the events that end in it, but those that this client does not know."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            event = self._line(line.rstrip(b"\r").decode("utf-8", "replace"), response)
            if event is not None:
                yield event

    def pause(self, error: EncoreError | None) -> float:
        """Return how many seconds to wait before the next connection; raises `error` when there is to be none.

        error: why the last one broke; None when the server ended it, which is no end of the job.
        """
        if error is None:
            error = Unavailable(f"The events of job {self._video_id} stopped without an end.")
        self._tries += 1
        if not self._begun or self._tries > TRIES or not isinstance(error, Unavailable | Busy):
            raise error
        return self._retry if error.retry_after is None else float(error.retry_after)

    def _line(self, line: str, response: httpx.Response) -> JobEvent | None:
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data" and name in self._block:
                value = f"{self._block[name]}\n{value}"
            if not name:  # a comment: the server is there, though there is nothing to tell
                self._tries = 0
            self._block[name] = value
            return None
        block, self._block = self._block, {}
        if block.get("retry", "").isdecimal():
            self._retry = int(block["retry"]) / 1000
        if block.get("event") not in EVENTS or "data" not in block:
            return None
        try:
            event = replies.event_of(block["event"], block.get("id", ""), json.loads(block["data"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise error_mapping.of_reply(error, response) from error
        self._last_id = event.id or self._last_id
        self._tries = 0
        self.done = event.kind in _FINAL
        return event
