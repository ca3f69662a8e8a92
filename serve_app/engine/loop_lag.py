"""How late an event loop wakes up: the proof that nothing blocks it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

INTERVAL = 0.05
KEPT = 1200
"""A minute of measurements."""


class LoopLag:
    """Sleeps again and again and notes by how much each sleep was longer than asked for, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._late: deque[float] = deque(maxlen=KEPT)

    async def watch(self) -> None:
        """Measure until cancelled."""
        while True:
            began = self._clock()
            await asyncio.sleep(INTERVAL)
            self._late.append(max(0.0, self._clock() - began - INTERVAL))

    def stats(self) -> dict[str, float]:
        """Return the median and the largest lag of the last minute; 0 before the first measurement."""
        ordered = sorted(self._late) or [0.0]
        return {"loop_lag_p50": ordered[len(ordered) // 2], "loop_lag_max": ordered[-1]}
