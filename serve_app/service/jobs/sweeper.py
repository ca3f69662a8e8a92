"""A router's round, once a second: what it does for jobs without being asked.

It starts with the first call or `start`, in an empty context (under Ray Serve a task is otherwise cancelled with the
request that made it), and nothing that goes wrong in a round ends it: the next one comes a second later.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from serve_app.errors import Unavailable
from serve_app.tasks import Periodic

logger = logging.getLogger(__name__)

ROUND_SECONDS = 1.0

CHORE_SECONDS = 10.0

Chore = Callable[[], Awaitable[object]]
Duty = Callable[[], Awaitable[None]]


class Sweeper:
    """Does each of `duties` every ROUND_SECONDS, one that fails not keeping the others from being done."""

    def __init__(self, duties: Sequence[Duty]) -> None:
        self._duties = duties
        self._periodic = Periodic("a round over the jobs", self.round, lambda: ROUND_SECONDS)

    def start(self) -> None:
        """Begin, on the running event loop; doing so again is harmless."""
        self._periodic.start()

    async def aclose(self) -> None:
        """End, in the middle of a round if need be, and for good."""
        await self._periodic.aclose()

    async def round(self) -> None:
        """Do each duty once."""
        for duty in self._duties:
            try:
                await duty()
            except Unavailable as error:
                logger.debug("a round over the jobs is cut short: %s", error)
            except Exception:
                logger.exception("a round over the jobs failed")


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
