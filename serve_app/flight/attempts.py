"""How often a render of a video ended in a death: that of its process, or of its lease.

An attempt is recorded before the risky work begins and closed when it ends in order, so whatever dies in between, up to
the whole node, leaves it open. The next leader of the flight settles it: an attempt that is open then has ended in a
death. What waits in a queue has no attempt, so the deaths of others never count against it. After `max_attempts`
deaths a video is quarantined: it is refused with RenderCrashed until it was not tried for QUARANTINE_SECONDS.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from serve_app.errors import RenderCrashed

MAX_ATTEMPTS = 5
QUARANTINE_SECONDS = 3600.0
"""How long attempts are remembered after the last change."""
LONGEST_BACKOFF = 8.0
BEGIN_SECONDS = 1.0
"""How long a render waits for its attempt to be recorded before it begins without."""


class End(StrEnum):
    """How an attempt ended."""

    DONE = "done"
    """With a video, or an error of its own: nothing is left to remember."""
    KEPT = "kept"
    """Drained, cancelled, refused: this attempt does not count, earlier ones do."""


class Attempts(Protocol):
    """Attempts by key(video); every method raises Unavailable when they cannot be reached."""

    async def settle(self, key: str, *, at_least: int = 0, died: bool = True) -> int:
        """Return how many attempts have ended in a death; called by the leader of the flight.

        at_least: what a job's record says. died: False when the open attempt was given up for another reason.
        """
        ...

    async def begin(self, key: str, attempt: str) -> None:
        """Record that an attempt of this id begins."""
        ...

    async def close(self, key: str, attempt: str, end: End) -> None:
        """Record that it ended in order; does nothing when another attempt has begun meanwhile."""
        ...


@dataclass(slots=True)
class _Count:
    deaths: int
    open: str
    at: float


class MemoryAttempts:
    """Attempts that one process knows of, the oldest forgotten beyond `most`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = 10_000) -> None:
        self._clock = clock
        self._most = most
        self._counts: dict[str, _Count] = {}

    async def settle(self, key: str, *, at_least: int = 0, died: bool = True) -> int:
        """Return how many attempts have ended in a death, the open one too."""
        count = self._find(key)
        count.deaths = max(count.deaths + (1 if count.open and died else 0), at_least)
        count.open = ""
        if count.deaths:
            self._counts[key] = count
        else:
            self._counts.pop(key, None)
        return count.deaths

    async def begin(self, key: str, attempt: str) -> None:
        """Record an attempt."""
        count = self._find(key)
        count.open, count.at = attempt, self._clock()
        self._counts.pop(key, None)
        self._counts[key] = count
        while len(self._counts) > self._most:
            del self._counts[next(iter(self._counts))]

    async def close(self, key: str, attempt: str, end: End) -> None:
        """Close it if it is the open one."""
        count = self._find(key)
        if count.open == attempt:
            count.open = ""
            if end is End.DONE or not count.deaths:
                self._counts.pop(key, None)

    def forget(self) -> None:
        """Forget everything."""
        self._counts.clear()

    def _find(self, key: str) -> _Count:
        count = self._counts.get(key)
        if count is None or self._clock() - count.at >= QUARANTINE_SECONDS:
            count = _Count(0, "", self._clock())
        return count


def backoff(attempts: int) -> float:
    """Return how many seconds a render waits before it is tried again after so many deaths: 1, 2, 4, 8, 8, ..."""
    return 0.0 if attempts < 1 else min(LONGEST_BACKOFF, 2.0 ** (attempts - 1))


def crashed(attempts: int) -> RenderCrashed:
    """Return the error of a quarantined video."""
    minutes = round(QUARANTINE_SECONDS / 60)
    return RenderCrashed(
        f"The renderer died or hung {attempts} times while it made this video, so it is not tried again for {minutes} "
        "minutes. Ask for another size, length or seed; if other videos end so too, the renderer's log says why "
        "(setting 'max_attempts')."
    )
