"""For how long something that changes with every heartbeat has stayed the same, as one process sees it.

No times of different clocks are compared: the holder of a lease changes a number in it, and a process that wants the
lease looks at that number now and then. Once it has stayed the same for the length of a lease by the observer's own
monotonic clock, the holder is taken for dead, and the lease may be taken by naming the very number that was seen (a
record version number, as in the DynamoDB lock client). A server's clock may step as it likes.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

LONGEST_GAP = 1.5
"""Seconds between two looks that count in full: a machine that cannot look cannot send heartbeats either."""
_MOST = 10_000


class Silence:
    """What one process has seen of many things; the one that was looked at longest ago is forgotten beyond 10,000."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, longest_gap: float = LONGEST_GAP) -> None:
        self._clock = clock
        self._longest_gap = longest_gap
        self._seen: OrderedDict[Hashable, tuple[Hashable, float, float]] = OrderedDict()

    def saw(self, thing: Hashable, version: Hashable) -> float:
        """Note what a look showed; return for how many seconds it has been the same."""
        now = self._clock()
        before, silent, at = self._seen.pop(thing, (None, 0.0, now))
        silent = silent + min(self._longest_gap, now - at) if before == version else 0.0
        self._seen[thing] = (version, silent, now)
        if len(self._seen) > _MOST:
            self._seen.popitem(last=False)
        return silent

    def version(self, thing: Hashable, seconds: float) -> Hashable | None:
        """Return what was seen last, if a look now that shows the same makes it `seconds` of silence; else None."""
        if thing not in self._seen:
            return None
        version, silent, at = self._seen[thing]
        return version if silent + min(self._longest_gap, self._clock() - at) >= seconds else None

    def forget(self, thing: Hashable) -> None:
        """Begin anew when it is seen again."""
        self._seen.pop(thing, None)


class Elapsed:
    """The seconds between the heartbeats of one process, by its own clock; no more than `longest` between two."""

    def __init__(self, longest: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest = longest
        self._clock = clock
        self._marks: OrderedDict[Hashable, float] = OrderedDict()

    def since(self, thing: Hashable) -> tuple[float, float]:
        """Return the seconds since the last heartbeat that was answered, 0 for the first, and the time now."""
        now = self._clock()
        return min(self._longest, now - self._marks.get(thing, now)), now

    def mark(self, thing: Hashable, at: float) -> None:
        """Note that the heartbeat of then was answered."""
        self._marks.pop(thing, None)
        self._marks[thing] = at
        if len(self._marks) > _MOST:
            self._marks.popitem(last=False)
