"""How long a pass takes by shape and rows, and from that how many rows are worth it. Pure Python, no torch.

What was measured at start-up is kept true by every pass that runs. More rows in a pass pay only as long as they raise
throughput: at some size one job fills the device, and from there on company costs a job latency and gives no job
anything. A shape that was not measured is judged by the nearest one that was, scaled by its volume.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from serve_app.errors import InvalidRequest
from serve_app.running_mean import RunningMean

Shape = tuple[int, ...]

GAIN = 0.05
"""Twice the rows must raise throughput by at least this share."""
_NEWEST = 0.1
"""The share of the latest pass in the mean of its size."""


class PassTimes:
    """Seconds per pass, known or estimated; `max_rows` is the most that any pass may have."""

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self._seconds: dict[Shape, dict[int, float]] = {}
        self._best: dict[Shape, int] = {}
        self._room: dict[Shape, int] = {}

    def measured(self, shape: Shape, seconds: Mapping[int, float]) -> None:
        """Take what passes over 1, 2, 4, ... rows took, and from it the best number of rows."""
        known = dict(sorted(seconds.items()))
        self._seconds[shape] = known
        self._best[shape] = best_rows(known)

    def saw(self, shape: Shape, rows: int, seconds: float) -> None:
        """Learn from a pass that ran; numbers of rows that were not measured are learnt too."""
        known = self._seconds.setdefault(shape, {})
        mean = RunningMean(_NEWEST, known.get(rows))
        mean.add(seconds)
        known[rows] = mean.value or seconds

    def did_not_fit(self, shape: Shape, rows: int) -> None:
        """Learn that a pass of so many rows ran out of memory: from now on half as many at most."""
        self._room[shape] = max(1, rows // 2)

    def limit(self, shape: Shape) -> int:
        """Return the most rows a pass of this shape should have, at least 1."""
        return max(1, min(self.max_rows, self._best_of(shape), self._room_of(shape)))

    def seconds(self, shape: Shape, rows: int) -> float:
        """Return what a pass is expected to take; 0 when nothing at all is known yet."""
        reference = self._nearest(shape, self._seconds)
        if reference is None:
            return 0.0
        return between(self._seconds[reference], rows) * math.prod(shape) / math.prod(reference)

    def measured_seconds(self, shape: Shape, rows: int) -> float:
        """Return the same; 0 too until a shape was measured: passes that merely ran say little about other sizes."""
        return self.seconds(shape, rows) if self._best else 0.0

    def row_seconds(self, shape: Shape) -> float:
        """Return what one row's step costs when passes are full."""
        return self.seconds(shape, self.limit(shape)) / self.limit(shape)

    def to_json(self) -> list[dict[str, Any]]:
        """Return what was measured, for a file."""
        return [{"shape": list(shape), "seconds": dict(self._seconds[shape])} for shape in self._best]

    def load(self, facts: Iterable[Mapping[str, Any]]) -> None:
        """Take what `to_json` gave; raises InvalidRequest for anything else."""
        try:
            for fact in facts:
                seconds = {int(rows): float(value) for rows, value in fact["seconds"].items()}
                if not seconds or min(seconds) < 1 or min(seconds.values()) <= 0:
                    raise ValueError(seconds)
                self.measured(tuple(int(length) for length in fact["shape"]), seconds)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidRequest("These are no measurements of an engine.") from error

    def knows(self, shape: Shape) -> bool:
        """Tell whether this very shape was measured."""
        return shape in self._best

    def _best_of(self, shape: Shape) -> int:
        reference = self._nearest(shape, self._best)
        if reference is None:
            return self.max_rows
        return int(self._best[reference] * math.prod(reference) / math.prod(shape))

    def _room_of(self, shape: Shape) -> int:
        """Return what fits: larger shapes than one that did not fit do not either."""
        rooms = [rows for known, rows in self._room.items() if math.prod(known) <= math.prod(shape)]
        return min(rooms, default=self.max_rows)

    @staticmethod
    def _nearest(shape: Shape, known: Mapping[Shape, object]) -> Shape | None:
        if shape in known:
            return shape
        return min(known, key=lambda other: abs(math.log(math.prod(other) / math.prod(shape))), default=None)


def best_rows(seconds: Mapping[int, float]) -> int:
    """Return the largest measured number of rows up to which throughput still rises by GAIN per doubling.

    One measurement that is off must not end the search, so a number of rows is compared with the best before it.
    """
    best = min(seconds)
    for rows in sorted(seconds):
        doublings = math.log2(rows / best)
        if doublings > 0 and rows / seconds[rows] >= (1 + GAIN) ** doublings * best / seconds[best]:
            best = rows
    return best


def between(seconds: Mapping[int, float], rows: int) -> float:
    """Return the seconds of a pass over `rows` rows: between the neighbours that are known, in proportion beyond."""
    known = sorted(seconds)
    above = next((each for each in known if each >= rows), None)
    below = next((each for each in reversed(known) if each <= rows), None)
    if above is None or below is None or above == below:
        nearest = known[-1] if above is None else above
        return seconds[nearest] * (rows / nearest if above is None else 1)
    share = (rows - below) / (above - below)
    return seconds[below] + share * (seconds[above] - seconds[below])
