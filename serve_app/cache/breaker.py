"""A circuit breaker: after a few failures in a row a tier is left alone for a while instead of timing out each time.

Closed: every attempt goes through. Open: none does, for `retry_after` seconds. Half-open: exactly one goes through
as a trial; its end closes the breaker or opens it for another while. A cancelled trial decides nothing, it only
makes room for the next one. All callers live on one event loop, so no lock is needed between the awaits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum

from serve_app.errors import TierError

logger = logging.getLogger(__name__)


class State(StrEnum):
    """Where a breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Opens after `failures` consecutive failures; asks again after `retry_after` seconds of `clock`."""

    def __init__(
        self, name: str, *, failures: int = 3, retry_after: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self._limit = failures
        self._retry_after = retry_after
        self._clock = clock
        self._failures = 0
        self._opened_at: float | None = None
        self._trial = False

    @property
    def state(self) -> State:
        """The state now; open becomes half-open by the clock alone."""
        if self._opened_at is None:
            return State.CLOSED
        return State.HALF_OPEN if self._clock() - self._opened_at >= self._retry_after else State.OPEN

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Wrap one attempt; raises TierError without running the body while the breaker is open.

        An Exception out of the body is a failure; a cancellation is neither failure nor success.
        """
        trial = self._admit()
        try:
            yield
        except Exception:
            self._failed(trial)
            raise
        else:
            self._succeeded()
        finally:
            # Only the trial itself frees the slot: attempts admitted before the breaker opened may end in between.
            if trial:
                self._trial = False

    def _admit(self) -> bool:
        state = self.state
        if state is State.OPEN or (state is State.HALF_OPEN and self._trial):
            raise TierError(f"{self.name} is left alone after {self._failures} failures.")
        self._trial = self._trial or state is State.HALF_OPEN
        return state is State.HALF_OPEN

    def _failed(self, trial: bool) -> None:
        self._failures += 1
        # A straggler admitted while closed must not push the next trial away, so only a trial reopens.
        if trial or (self._opened_at is None and self._failures >= self._limit):
            if self._opened_at is None:
                logger.warning("%s failed %d times; left alone for %g s", self.name, self._failures, self._retry_after)
            self._opened_at = self._clock()

    def _succeeded(self) -> None:
        if self._opened_at is not None:
            logger.warning("%s works again", self.name)
        self._failures, self._opened_at = 0, None
