"""The two breakers of one server, shared by all that one process asks of it.

Values, flights and job records of one Redis (or the objects of all kinds in one store) fail together, so what one of
them found out the others need not find out by waiting. A server that answers but takes no values (out of memory, disk
full, read-only) is another thing than one that does not answer: its values are worth reading, so storing has a breaker
of its own, which refusals open, and no refusal opens the other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve_app.cache.breaker import Breaker, State, Verdict
from serve_app.errors import TierFull, TierLeftAlone, TierRefused
from serve_app.telemetry import BreakerTurned, Telemetry


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

        def breaker(name: str, asked: str, judge: Callable[[Exception], Verdict]) -> Breaker:
            def tell(state: State) -> None:
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

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Wrap one call that stores no value; raises TierLeftAlone while the server does not answer."""
        with self.reach.attempt():
            yield

    @contextmanager
    def storing(self) -> Iterator[None]:
        """Wrap one call that stores a value; raises TierLeftAlone while the server takes none, or does not answer."""
        with self.reach.attempt(), self.store.attempt():
            yield

    @property
    def reachable(self) -> bool:
        """Whether the server is worth asking, as far as is known."""
        return self.reach.state is not State.OPEN

    @property
    def answers(self) -> bool:
        """Whether the server answered when it was last asked, or was never asked."""
        return self.reach.state is State.CLOSED

    @property
    def takes_values(self) -> bool:
        """Whether a value is worth sending, as far as is known."""
        return self.reachable and self.store.state is not State.OPEN

    @property
    def closed(self) -> bool:
        """Whether nothing speaks against the server."""
        return self.answers and self.store.state is State.CLOSED

    def stats(self) -> dict[str, str]:
        """Return both states, and nothing of what is behind them."""
        return {"breaker": str(self.reach.state), "store_breaker": str(self.store.state)}


def _of_reach(error: Exception) -> Verdict:
    if isinstance(error, TierLeftAlone):  # the other breaker's word: nobody was asked
        return Verdict.NOTHING
    return Verdict.WORKS if isinstance(error, TierRefused | TierFull) else Verdict.FAILED


def _of_store(error: Exception) -> Verdict:
    return Verdict.FAILED if isinstance(error, TierRefused) else Verdict.NOTHING
