"""Counts how requests were answered in one router, tells telemetry, and adds up the counts of several routers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from serve_app.core import Outcome
from serve_app.telemetry import Answered, Telemetry


class OutcomeCounter:
    """Outcomes since the process started, failures among them."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._counts: Counter[str] = Counter()

    def count(self, outcome: Outcome | None, seconds: float, size: int) -> None:
        """Count one answer that took so many seconds and has so many bytes; None is a failure."""
        name = "failed" if outcome is None else outcome
        self._counts[name] += 1
        self._telemetry.emit(Answered(name, seconds, size))

    def counts(self) -> dict[str, int]:
        """Return the counts by outcome."""
        return dict(self._counts)


def summed(counts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sums of equal names, at every level; what is no number is left out."""
    sums: dict[str, Any] = {}
    for each in counts:
        for name, value in each.items():
            if isinstance(value, Mapping):
                sums[name] = summed([sums.get(name, {}), value])
            elif isinstance(value, int | float) and not isinstance(value, bool):
                sums[name] = sums.get(name, 0) + value
    return sums
