"""A circuit breaker: after a few failures in a row a tier is left alone for a while instead of timing out each time.

Closed: every attempt goes through. Open: none does, for `retry_after` seconds. Half-open: exactly one goes through
as a trial; its end closes the breaker or opens it for another while. A trial that decides nothing (it was cancelled, or
failed of something else) only makes room for the next one. All callers live on one event loop, so no lock is needed
between the awaits.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum

from serve_app.errors import TierLeftAlone

logger = logging.getLogger(__name__)


class BreakerState(StrEnum):
    """Where a breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class ErrorMeaning(StrEnum):
    """What an exception says of the tier it came from."""

    FAILED = "failed"
    WORKS = "works"
    NOTHING = "nothing"


def _any_failure(error: Exception) -> ErrorMeaning:
    return ErrorMeaning.FAILED


class Breaker:
    """Opens after `failures` consecutive failures; asks again after `retry_after` seconds of `clock`.

    slow_after: seconds of an attempt above which it counts as a failure, though its result is used. judge: what an
    exception out of an attempt says; without it every one is a failure. turned: hears OPEN and CLOSED.
    """

    def __init__(
        self,
        name: str,
        *,
        failures: int = 3,
        retry_after: float = 5.0,
        slow_after: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
        judge: Callable[[Exception], ErrorMeaning] = _any_failure,
        turned: Callable[[BreakerState], object] = lambda state: None,
    ) -> None:
        self.name = name
        self._limit = failures
        self._retry_after = retry_after
        self._slow_after = slow_after
        self._clock = clock
        self._judge = judge
        self._turned = turned
        self._failures = 0
        self._opened_at: float | None = None
        self._trial = False

    @property
    def state(self) -> BreakerState:
        """The state now; open becomes half-open by the clock alone."""
        if self._opened_at is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self._clock() - self._opened_at >= self._retry_after else BreakerState.OPEN

    @property
    def opened_at(self) -> float | None:
        """When it was opened, by its clock, or opened again by a trial that failed; None while it is closed."""
        return self._opened_at

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Wrap one attempt; raises TierLeftAlone without running the body while the breaker is open.

        An Exception out of the body is judged; a cancellation is neither failure nor success.
        """
        trial, began = self._admit(), self._clock()
        try:
            yield
        except Exception as error:
            match self._judge(error):
                case ErrorMeaning.FAILED:
                    self._failed(trial)
                case ErrorMeaning.WORKS:
                    self._succeeded()
            raise
        else:
            if self._clock() - began > self._slow_after:
                self._failed(trial)
            else:
                self._succeeded()
        finally:
            # Only the trial itself frees the slot: attempts admitted before the breaker opened may end in between.
            if trial:
                self._trial = False

    def trip(self) -> None:
        """Open at once, for another while: another caller has found that there is no use in trying."""
        self._open()

    def close(self) -> None:
        """Close at once: another caller has found that it works."""
        self._succeeded()

    def _admit(self) -> bool:
        state = self.state
        if state is BreakerState.OPEN or (state is BreakerState.HALF_OPEN and self._trial):
            raise TierLeftAlone(f"{self.name} does not work and is left alone for a while.")
        self._trial = self._trial or state is BreakerState.HALF_OPEN
        return state is BreakerState.HALF_OPEN

    def _failed(self, trial: bool) -> None:
        self._failures += 1
        # A straggler admitted while closed must not push the next trial away, so only a trial reopens.
        if trial or (self._opened_at is None and self._failures >= self._limit):
            self._open()

    def _open(self) -> None:
        before, self._opened_at = self._opened_at, self._clock()
        if before is None:
            logger.warning("%s does not work; left alone for %g s", self.name, self._retry_after)
            self._turned(BreakerState.OPEN)

    def _succeeded(self) -> None:
        before, self._opened_at, self._failures = self._opened_at, None, 0
        if before is not None:
            logger.warning("%s works again", self.name)
            self._turned(BreakerState.CLOSED)
