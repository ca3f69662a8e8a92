"""Notices work that does not end: a kernel that hangs raises nothing, it is just never done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve_app.errors import Unavailable


class Watchdog:
    """What runs now and since when; entered by any thread, asked by the event loop."""

    def __init__(self, longest_seconds: float, clock: Callable[[], float]) -> None:
        self._longest_seconds = longest_seconds
        self._clock = clock
        self._since: dict[object, tuple[str, float]] = {}

    @contextmanager
    def running(self, thread: str) -> Iterator[None]:
        """Count what is inside as work of `thread`, the time it waits for the thread too."""
        work = object()
        self._since[work] = (thread, self._clock())
        try:
            yield
        finally:
            del self._since[work]

    def check(self) -> None:
        """Raise Unavailable when something has run for too long."""
        for thread, since in tuple(self._since.values()):
            seconds = self._clock() - since
            if seconds > self._longest_seconds:
                raise Unavailable(f"The {thread} thread has been stuck for {seconds:.0f} s.")
