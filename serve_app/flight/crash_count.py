"""The attempts at one video as its passage counts them: those on record, and those it saw die where no record could be.

The record is the truth. Without one, or while it cannot be reached, what this process saw itself still bounds how often
a video may end its renderer.
"""

from __future__ import annotations

import logging
import uuid
from contextlib import suppress

from serve_app.errors import Unavailable
from serve_app.flight.attempts import Attempts, End, MemoryAttempts, crashed

logger = logging.getLogger(__name__)


class CrashCount:
    """The attempts at `key`; `running` says that the present one's steps have begun."""

    def __init__(self, key: str, attempts: Attempts | None, most: int) -> None:
        self.running = False
        self._key = key
        self._attempts = attempts or MemoryAttempts()
        self._most = most
        self._seen = 0
        self._forgiven = False

    def forgive(self) -> None:
        """Let the attempt that is open now not count: it was given up because something else is wanted."""
        self._forgiven = True

    async def settle(self, at_least: int) -> int:
        """Return how many attempts have ended in a death; raises RenderCrashed when that is enough."""
        died, self._forgiven, self.running = not self._forgiven, False, False
        count = max(self._seen, at_least)
        with suppress(Unavailable):
            count = await self._attempts.settle(self._key, at_least=count, died=died)
        if count >= self._most:
            raise crashed(count)
        return count

    async def died(self, *, unrecorded: bool) -> None:
        """Count the death of the replica, if the render's steps had begun; `unrecorded`: the replica could not."""
        if not self.running:
            return
        self._seen += 1
        if unrecorded:
            with suppress(Unavailable):
                await self._attempts.begin(self._key, uuid.uuid4().hex)

    async def survived(self) -> None:
        """Forget what was counted: there is a video."""
        if self._seen:
            attempt = uuid.uuid4().hex
            with suppress(Unavailable):
                await self._attempts.begin(self._key, attempt)
                await self._attempts.close(self._key, attempt, End.DONE)
