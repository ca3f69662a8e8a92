"""What a router does for stores now and then, whoever else does it too: each is bounded and harmless to repeat."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

CHORE_SECONDS = 10.0

Chore = Callable[[], Awaitable[object]]


class PeriodicTasks:
    """Does `chores` in turn when CHORE_SECONDS have passed since the last time, and at first."""

    def __init__(self, chores: Sequence[Chore], clock: Callable[[], float] = time.monotonic) -> None:
        self._chores = chores
        self._clock = clock
        self._due = float("-inf")

    async def __call__(self) -> None:
        """Do them if they are due; what one raises keeps the later ones from being done until the next time."""
        if self._clock() < self._due:
            return
        self._due = self._clock() + CHORE_SECONDS
        for chore in self._chores:
            await chore()
