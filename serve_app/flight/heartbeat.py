"""The heartbeat of one flight's record, from the replica that renders it: at every step, and in between.

Each heartbeat re-reads the record, so a cancelled or lost flight ends at the next step and a more urgent waiter is
heard of. When the record cannot be reached the render goes on: its video is worth having even when the record is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from serve_app.core import Urgency
from serve_app.errors import TierError
from serve_app.flight.record import BEAT_SECONDS, FlightRecords, FlightState, FlightStatus, HolderStatus

logger = logging.getLogger(__name__)


class Heartbeat:
    """One render's heartbeat. `stop` is called once when the flight is lost or cancelled, `hurry` when more urgent."""

    def __init__(
        self,
        records: FlightRecords,
        key: str,
        token: int,
        *,
        embedding: str,
        stop: Callable[[], object],
        hurry: Callable[[Urgency], object],
    ) -> None:
        self._records = records
        self._key = key
        self._status = FlightStatus(token, FlightState.RENDERING, embedding=embedding)
        self._stop = stop
        self._hurry = hurry
        self._urgency: Urgency | None = None
        self._moved = asyncio.Event()

    @property
    def token(self) -> int:
        """The newest token this render was given."""
        return self._status.token

    def take(self, token: int) -> None:
        """Go on under a newer token: the flight was leased anew while this replica still worked on it."""
        if token > self._status.token:
            self._say(replace(self._status, token=token))

    def step(self, step: int, total: int) -> None:
        """Tell that `step` of `total` steps are done."""
        self._say(replace(self._status, step=step, total=total))

    async def run(self) -> None:
        """Beat until the flight is lost or cancelled; the caller cancels it when the render has ended."""
        while True:
            self._moved.clear()
            token = self._status.token
            try:
                beat = await self._records.beat(self._key, token, self._status)
            except TierError as error:
                logger.debug("heartbeat: %s", error)
            else:
                if beat.verdict is not HolderStatus.HELD and token == self._status.token:
                    logger.info("render of %s is %s", self._key, beat.verdict)
                    self._stop()
                    return
                if beat.urgency is not None and beat.urgency != self._urgency:
                    self._urgency = beat.urgency
                    self._hurry(beat.urgency)
            with suppress(TimeoutError):
                async with asyncio.timeout(BEAT_SECONDS):  # not `wait_for`, which can swallow a cancellation (3.11)
                    await self._moved.wait()

    def _say(self, status: FlightStatus) -> None:
        self._status = status
        self._moved.set()
