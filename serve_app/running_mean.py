"""A mean over the latest values: each new one counts for a share, older ones for ever less (an exponential average)."""

from __future__ import annotations


class RunningMean:
    """`value` is the mean, None before the first value; `share` is the weight of the newest."""

    def __init__(self, share: float, value: float | None = None) -> None:
        self.value = value
        self._share = share

    def add(self, value: float) -> None:
        """Take one more value into the mean."""
        self.value = value if self.value is None else self.value + self._share * (value - self.value)
