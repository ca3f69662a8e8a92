"""Counts of several routers as one: what each has counted by itself, added up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


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
