"""How often one flight has tried to render its video, and when it gives up.

Four counts, because the causes differ: attempts that ended in the death of their process (on record, so that all
processes count together), failures in a row of replicas that could not be reached, replicas with other weights, and
cancellations under a flight that still has waiters.

The record of attempts is the truth. Without one, or while it cannot be reached, what this process saw itself still
bounds how often a video may end its renderer.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from contextlib import suppress

from serve_app.errors import EncoreError, FingerprintMismatch, ReplicaDied, Unavailable
from serve_app.flight.attempts import Attempts, End, backoff, crashed

logger = logging.getLogger(__name__)

MISMATCHES = 10
"""How often a render is asked for again when a replica with other weights got it (a rolling update)."""
PATIENCE_SECONDS = 30.0
"""How long requests that hold a connection wait while no replica takes their render; jobs wait on."""
CANCELS = 10
"""How often a render may be cancelled under its waiters: by a lost lease, or just before a waiter came."""


class Retries:
    """The tries of one flight of `key`; `most` deaths of processes end it for good."""

    def __init__(self, key: str, attempts: Attempts, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.tries = 0
        self._key = key
        self._attempts = attempts
        self._most = most
        self._clock = clock
        self._is_running = False
        self._is_forgiven = False
        self._deaths_seen = 0
        self._failures = 0
        self._failing_since: float | None = None
        self._mismatches = 0
        self._cancels = 0

    async def settle(self, at_least: int) -> int:
        """Return how many attempts have ended in a death, the open one too; raises RenderCrashed at `most`.

        at_least: what the records of the waiting jobs say.
        """
        died, self._is_forgiven, self._is_running = not self._is_forgiven, False, False
        count = max(self._deaths_seen, at_least)
        with suppress(Unavailable):
            count = await self._attempts.settle(self._key, at_least=count, died=died)
        if count >= self._most:
            raise crashed(count)
        return count

    def pause(self, deaths: int) -> float:
        """Return for how many seconds the next try should wait."""
        return max(backoff(deaths), backoff(self._failures - 1))

    def forgive(self) -> None:
        """Let the attempt that is open now not count: it was given up because another render is wanted."""
        self._is_forgiven = True

    def progressed(self) -> None:
        """Note that the present try computes: the replica answers, and its death would count from now on."""
        self._is_running = True
        self._failures, self._failing_since = 0, None

    async def succeeded(self) -> None:
        """Forget the deaths that were counted: there is a video."""
        if self._deaths_seen:
            attempt = uuid.uuid4().hex
            with suppress(Unavailable):
                await self._attempts.begin(self._key, attempt)
                await self._attempts.close(self._key, attempt, End.DONE)

    async def failed(self, error: Unavailable | FingerprintMismatch, *, unrecorded: bool) -> float:
        """Count a try that no replica carried out; return for how many seconds that has gone on.

        unrecorded: the replica had no record to write its attempt to. Raises `error` itself when replicas with other
        weights have refused the render too often.
        """
        self.tries += 1
        self._mismatches += isinstance(error, FingerprintMismatch)
        if self._mismatches > MISMATCHES:
            raise error
        if isinstance(error, ReplicaDied) and self._is_running:
            await self._died(unrecorded)
        logger.warning("render of %s failed (%d in a row): %s", self._key, self._failures + 1, error)
        self._failures += 1
        now = self._clock()
        self._failing_since = now if self._failing_since is None else self._failing_since
        return now - self._failing_since

    def cancelled(self, *, may_repeat: bool) -> bool:
        """Count a cancellation under waiters; tell whether another try makes sense.

        may_repeat: the flight is on record, so that a lost lease may be the cause.
        """
        self._cancels += 1
        return self._cancels <= (CANCELS if may_repeat else 1)

    async def _died(self, unrecorded: bool) -> None:
        self._deaths_seen += 1
        if unrecorded:
            with suppress(Unavailable):
                await self._attempts.begin(self._key, uuid.uuid4().hex)


def unavailable(seconds: float) -> EncoreError:
    """Return the error for requests that hold a connection while no replica has rendered for `seconds`."""
    return Unavailable(f"No replica could render this video for {round(seconds)} s; try again in 10 s.", retry_after=10)
