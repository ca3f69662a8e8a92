"""One attempt at a render, as the process that makes it records it: begun before the risky part, closed after it."""

from __future__ import annotations

import asyncio
import logging
import uuid

from serve_app.engine.isolation import Isolation
from serve_app.errors import Unavailable
from serve_app.flight.attempts import BEGIN_SECONDS, Attempts, End
from serve_app.tasks import detached

logger = logging.getLogger(__name__)


class RenderAttempt:
    """An attempt at `key`; without `attempts` it is on no record."""

    def __init__(self, isolation: Isolation, attempts: Attempts | None, key: str) -> None:
        self._isolation = isolation
        self._attempts = attempts
        self._key = key
        self._id = uuid.uuid4().hex
        self._begun = False

    async def admitted(self) -> None:
        """Begin a part that runs outside the passes of the engine, as soon as it may."""
        await self._isolation.admitted(self._key)
        await self.begin()

    async def begin(self) -> None:
        """Record the attempt; once is enough. While that is impossible the render goes on without."""
        if self._begun or self._attempts is None:
            return
        self._begun = True
        try:
            async with asyncio.timeout(BEGIN_SECONDS):
                await self._attempts.begin(self._key, self._id)
        except (Unavailable, TimeoutError) as error:
            logger.warning("the attempt at %s could not be recorded: %s", self._key, error)

    async def close(self, end: End) -> None:
        """Record how it ended; cancelling the wait does not keep it from being recorded."""
        if self._begun and self._attempts is not None:
            await asyncio.shield(detached(self._close(self._attempts, end)))

    async def _close(self, attempts: Attempts, end: End) -> None:
        try:
            async with asyncio.timeout(BEGIN_SECONDS):
                await attempts.close(self._key, self._id, end)
        except (Unavailable, TimeoutError) as error:
            logger.warning("the end of an attempt at %s could not be recorded: %s", self._key, error)
