"""Which values a full cache lets go: Greedy-Dual-Size-Frequency with ageing, as plain Python without any I/O.

A value's priority is the cache's age at its last use plus what a byte of it is worth: how often it was used times the
seconds it saves, by its bytes. The lowest goes, and its priority becomes the age, so that what was dear once and is
used no more is overtaken in time (L. Cherkasova 1998, after P. Cao and S. Irani 1997). The worth is raised to a power
as in GreedyDual* (S. Jin and A. Bestavros 2001), and how often an evicted name was used is remembered for a while;
benchmarks/eviction.py measured both. There is no admission check: it changed nothing there, and a durable tier that
refuses a finished video would leave it unstored.

`Gdsf` keeps its books in a heap; `FolderIndex` keeps the same books in SQLite, where several processes share them.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from dataclasses import dataclass

POWER = 1.25
"""Above 1 differences in worth weigh more against age; GreedyDual* writes it 1/beta. 1 is plain GDSF."""
GHOSTS_PER_VALUE = 4
"""So many evicted names are remembered for each value that is held."""


def worth(frequency: float, cost_seconds: float, size: int, power: float = POWER) -> float:
    """Return what holding on to a byte of a value is worth; `size` in bytes, an empty value counts as one."""
    return math.pow(frequency * cost_seconds / max(size, 1), power)


@dataclass(slots=True)
class _Value:
    size: int
    cost_seconds: float
    frequency: float
    priority: float
    turn: int


class Gdsf:
    """Names with sizes and costs, at most `max_bytes` of them; it says what goes, the caller lets it go.

    Every change costs O(log n) amortised. Of equal priorities the one used longest ago goes first.
    """

    def __init__(self, max_bytes: int, *, power: float = POWER, ghosts_per_value: float = GHOSTS_PER_VALUE) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.age = 0.0
        self._power = power
        self._ghosts_per_value = ghosts_per_value
        self._values: dict[str, _Value] = {}
        self._ghosts: OrderedDict[str, float] = OrderedDict()
        self._heap: list[tuple[float, int, str]] = []  # entries whose turn is not their value's any more are void
        self._turn = 0

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __len__(self) -> int:
        return len(self._values)

    def use(self, name: str, times: int = 1) -> bool:
        """Count that `name` was used; False when it is not held."""
        value = self._values.get(name)
        if value is None:
            return False
        value.frequency += times
        self._rank(name, value)
        return True

    def add(self, name: str, size: int, cost_seconds: float) -> list[str]:
        """Hold `name`, which is not held yet; return the names that go for it, lowest priority first.

        Raises ValueError for a size beyond the bound, and for a name that is held.
        """
        if name in self._values or size > self.max_bytes:
            raise ValueError("the name is held already" if name in self._values else "larger than the bound")
        gone = self.evict_to(self.max_bytes - size)
        value = _Value(size, cost_seconds, self._ghosts.pop(name, 0) + 1, 0.0, 0)
        self._values[name] = value
        self.bytes += size
        self._rank(name, value)
        return gone

    def evict_to(self, max_bytes: int) -> list[str]:
        """Let names go until at most `max_bytes` are held; return them, lowest priority first."""
        gone = []
        while self.bytes > max_bytes:
            gone.append(self._evict())
        return gone

    def remove(self, name: str) -> bool:
        """Forget `name`, as deleted rather than evicted; False when it was not held."""
        value = self._values.pop(name, None)
        if value is not None:
            self.bytes -= value.size
        return value is not None

    def frequency(self, name: str) -> float:
        """Return how often a name was used that is held, or was evicted not long ago; 0 for others."""
        value = self._values.get(name)
        return self._ghosts.get(name, 0.0) if value is None else value.frequency

    def check_integrity(self) -> None:
        """Raise AssertionError unless the books agree with each other; for tests."""
        assert self.bytes == sum(value.size for value in self._values.values()) <= self.max_bytes  # noqa: S101
        assert self._values.keys() <= {name for _, _, name in self._heap}  # noqa: S101
        assert len(self._heap) <= 2 * len(self._values) + 64  # noqa: S101
        assert not self._values.keys() & self._ghosts.keys()  # noqa: S101

    def _evict(self) -> str:
        while True:
            priority, turn, name = heapq.heappop(self._heap)
            value = self._values.get(name)
            if value is not None and value.turn == turn:
                break
        del self._values[name]
        self.bytes -= value.size
        self.age = priority
        self._ghosts[name] = value.frequency
        while len(self._ghosts) > self._ghosts_per_value * (len(self._values) + 1):
            self._ghosts.popitem(last=False)
        return name

    def _rank(self, name: str, value: _Value) -> None:
        self._turn += 1
        value.turn = self._turn
        value.priority = self.age + worth(value.frequency, value.cost_seconds, value.size, self._power)
        heapq.heappush(self._heap, (value.priority, value.turn, name))
        if len(self._heap) > 2 * len(self._values) + 64:
            self._heap = [(each.priority, each.turn, held) for held, each in self._values.items()]
            heapq.heapify(self._heap)
