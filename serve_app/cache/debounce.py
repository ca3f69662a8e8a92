"""Once in a while per key, in bounded memory: hot keys extend their TTL hourly, not at every hit."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable


class Debounce:
    """Remembers when each of the last `capacity` keys was due; a forgotten key is simply due again."""

    def __init__(self, interval: float, *, capacity: int = 10_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._capacity = capacity
        self._clock = clock
        self._last: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._last)

    def due(self, key: str) -> bool:
        """Tell whether `interval` seconds passed since `key` was last due; if so, it was due now."""
        now = self._clock()
        last = self._last.get(key)
        if last is not None and now - last < self._interval:
            return False
        self._last[key] = now
        self._last.move_to_end(key)
        if len(self._last) > self._capacity:
            self._last.popitem(last=False)
        return True

    def forget(self, key: str) -> None:
        """Make `key` due at once."""
        self._last.pop(key, None)
