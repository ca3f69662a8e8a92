"""The two breakers of one server, shared by all that one process asks of it.

Values, flights and job records of one Redis (or the objects of all kinds in one store) fail together, so what one of
them found out the others need not find out by waiting. A server that answers but takes no values (out of memory, disk
full, read-only) is another thing than one that does not answer: its values are worth reading, so storing has a breaker
of its own, which refusals open, and no refusal opens the other.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve_app.cache.breaker import Breaker, BreakerState, ErrorMeaning
from serve_app.errors import TierError, TierFull, TierLeftAlone, TierRefused
from serve_app.telemetry import BreakerTurned, Telemetry

logger = logging.getLogger(__name__)

TOLD_AGAIN_SECONDS = 3600.0


class Circuit:
    """`reach`: whether the server of `tier` answers; `store`: whether it takes what it is given."""

    def __init__(
        self,
        tier: str,
        telemetry: Telemetry | None = None,
        *,
        failures: int = 3,
        retry_after: float = 5.0,
        slow_after: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tier = tier
        self._telemetry = telemetry or Telemetry()

        def breaker(name: str, asked: str, judge: Callable[[Exception], ErrorMeaning]) -> Breaker:
            def tell(state: BreakerState) -> None:
                self._telemetry.emit(BreakerTurned(tier, asked, state))

            return Breaker(
                name,
                failures=failures,
                retry_after=retry_after,
                slow_after=slow_after,
                clock=clock,
                judge=judge,
                turned=tell,
            )

        self.reach = breaker(tier, "reach", _of_reach)
        self.store = breaker(f"storing in {tier}", "store", _of_store)
        self._clock = clock
        self._faults: dict[str, str] = {}
        self._told: dict[str, float] = {}

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Wrap one call that stores no value; raises TierLeftAlone while the server does not answer."""
        with self._heard("reach"), self.reach.attempt():
            yield

    @contextmanager
    def storing(self) -> Iterator[None]:
        """Wrap one call that stores a value; raises TierLeftAlone while the server takes none, or does not answer."""
        with self._heard("store"), self.reach.attempt(), self.store.attempt():
            yield

    @property
    def reachable(self) -> bool:
        """Whether the server is worth asking, as far as is known."""
        return self.reach.state is not BreakerState.OPEN

    @property
    def answers(self) -> bool:
        """Whether the server answered when it was last asked, or was never asked."""
        return self.reach.state is BreakerState.CLOSED

    @property
    def takes_values(self) -> bool:
        """Whether a value is worth sending, as far as is known."""
        return self.reachable and self.store.state is not BreakerState.OPEN

    @property
    def closed(self) -> bool:
        """Whether nothing speaks against the server."""
        return self.answers and self.store.state is BreakerState.CLOSED

    @property
    def broken(self) -> tuple[str, str] | None:
        """Why the server cannot be used, and in which words; None while nothing speaks against it.

        `misconfigured`: only a person can mend it; `unreachable` and `refusing` (full, read-only) may pass.
        """
        if self._faults:
            return "misconfigured", next(iter(self._faults.values()))
        if not self.answers:
            return "unreachable", "it does not answer"
        return ("refusing", "it takes no values") if self.store.state is not BreakerState.CLOSED else None

    @contextmanager
    def _heard(self, asked: str) -> Iterator[None]:
        """Keep what the server said that only a person can mend, until a call of that kind works again."""
        try:
            yield
        except TierError as error:
            if error.misconfigured is not None:
                self._faults[asked] = error.misconfigured
                self._tell(error.misconfigured)
            raise
        else:
            self._faults.pop(asked, None)
            if asked == "store":
                self._faults.clear()

    def _tell(self, words: str) -> None:
        now = self._clock()
        if now - self._told.get(words, -math.inf) > TOLD_AGAIN_SECONDS:
            self._told[words] = now
            setting = {"l2": "redis_url", "l3": "l3_url"}.get(self.tier, self.tier)
            logger.warning("%s refuses this server; correct its setting (%s): %s", self.tier, setting, words)

    def stats(self) -> dict[str, str]:
        """Return both states, and nothing of what is behind them."""
        return {"breaker": str(self.reach.state), "store_breaker": str(self.store.state)}


def _of_reach(error: Exception) -> ErrorMeaning:
    if isinstance(error, TierLeftAlone):  # the other breaker's word: the server was not asked
        return ErrorMeaning.NOTHING
    return ErrorMeaning.WORKS if isinstance(error, TierRefused | TierFull) else ErrorMeaning.FAILED


def _of_store(error: Exception) -> ErrorMeaning:
    return ErrorMeaning.FAILED if isinstance(error, TierRefused) else ErrorMeaning.NOTHING
