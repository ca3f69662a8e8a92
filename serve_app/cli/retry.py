"""Calls that are made again while the server is busy or away, by commands that have begun something there."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from serve_app.errors import Busy, Unavailable

T = TypeVar("T")
PATIENCE_SECONDS = 120.0
"""Longer than a server takes to start again."""
RETRY_SECONDS = 1.0


def patient(call: Callable[[], T], retry_after: float | None = None) -> T:
    """Make a call; wait as the server says while it is busy or away, or `retry_after` seconds if it does not say.

    With a `retry_after`, the call must be one that may be made twice.
    """
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return call()
        except (Busy, Unavailable) as error:
            pause = retry_after if error.retry_after is None else error.retry_after
            if pause is None or time.monotonic() + pause > until:
                raise
            time.sleep(pause)
