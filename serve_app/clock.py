"""Unix time that never goes back: what orders requests and jobs within a process, whatever is done to its clock.

A wall clock that is set forward is followed at once. One that is set back is not: until it has caught up, this clock
runs at half its pace, so that of two moments the later one still has the later time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_CATCHING_UP = 0.5


class SteadyClock:
    """Call it for Unix seconds; `wall` may step, `monotonic` does not."""

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._last = wall()
        self._last_at = monotonic()

    def __call__(self) -> float:
        """Return Unix seconds, never less than any call before."""
        now = self._monotonic()
        self._last = max(self._wall(), self._last + _CATCHING_UP * max(0.0, now - self._last_at))
        self._last_at = now
        return self._last


steady = SteadyClock()
"""That of this process."""
