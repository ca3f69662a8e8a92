"""Who may ask the renderer next: one request at a time leaves this router, the earliest due first.

Replicas take about two batches each and no more, so what waits beyond that waits here, where a later but more urgent
request can pass it and a new replica finds it. The one that is let through stays alone until a replica has taken it;
so at most one request per router is out of order. All that wait are judged by one estimate of what work takes, so equal
requests go in the order they were asked for, whatever it does.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from serve_app.core import Priority
from serve_app.engine.scheduler import Claim, drifted


@dataclass(slots=True)
class QueuedRender:
    """One request's place in the queue, and once it is through, the right to be alone there until `taken`."""

    key: str
    claim: Claim
    work: float
    number: int
    rank: tuple[float, float, int] = (0.0, 0.0, 0)
    _through: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class RenderQueue:
    """The queue of one router; all methods belong to one event loop."""

    def __init__(self) -> None:
        self._waiting: list[QueuedRender] = []
        self._out: QueuedRender | None = None
        self._seconds_per_work = 0.0
        self._came = itertools.count()

    def __len__(self) -> int:
        return len(self._waiting)

    def reckon(self, seconds_per_work: float) -> None:
        """Judge what waits by this estimate from now on."""
        if drifted(self._seconds_per_work, seconds_per_work):
            self._seconds_per_work = seconds_per_work
            for turn in self._waiting:
                turn.rank = self._rank(turn)
            self._waiting.sort(key=_rank)

    @asynccontextmanager
    async def turn(
        self,
        key: str,
        asked_at: float,
        *,
        priority: Priority = Priority.INTERACTIVE,
        deadline: float | None = None,
        work: float = 0.0,
    ) -> AsyncIterator[QueuedRender]:
        """Wait for this request's turn; leaving the block, or `taken`, lets the next one through.

        asked_at and deadline are on one clock, `work` is in the unit that `reckon` is told of.
        """
        turn = QueuedRender(key, Claim(asked_at, priority, deadline), work, next(self._came))
        turn.rank = self._rank(turn)
        bisect.insort(self._waiting, turn, key=_rank)
        self._let_through()
        try:
            await turn._through
            yield turn
        finally:
            self._leave(turn)

    def taken(self, turn: QueuedRender) -> None:
        """Say that a replica works on this request now; saying it again is harmless."""
        if self._out is turn:
            self._out = None
            self._let_through()

    def promote(
        self,
        key: str,
        asked_at: float,
        priority: Priority = Priority.INTERACTIVE,
        deadline: float | None = None,
    ) -> bool:
        """Take one more caller, that asked then, into a waiting request; it gets no later. False: it is not here."""
        turn = next((turn for turn in self._waiting if turn.key == key), None)
        if turn is None:
            return False
        turn.claim.join(asked_at, priority, deadline)
        turn.rank = self._rank(turn)
        self._waiting.sort(key=_rank)
        return True

    def _rank(self, turn: QueuedRender) -> tuple[float, float, int]:
        return (turn.claim.due(turn.work * self._seconds_per_work), turn.claim.asked_at, turn.number)

    def _leave(self, turn: QueuedRender) -> None:
        if turn in self._waiting:
            self._waiting.remove(turn)
        self.taken(turn)

    def _let_through(self) -> None:
        while self._out is None and self._waiting:
            first = self._waiting.pop(0)
            if not first._through.done():  # its task may have been cancelled a moment ago
                first._through.set_result(None)
                self._out = first


def _rank(turn: QueuedRender) -> tuple[float, float, int]:
    return turn.rank
