"""Which renders may run beside which in one process: a suspect runs alone.

When a process dies, whatever had begun in it is a suspect, and it is not known which of them it was. So a suspect is
begun only when nothing else that has begun is left in the process, and nothing else begins until it has ended: the next
death then counts against it alone. A suspect had its turn before, so it goes before what has not begun yet; of several
suspects the one with the fewest attempts goes first.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Isolation:
    """Who has begun in this process, and which suspects wait to be alone; it belongs to one event loop.

    changed: called when something may begin that might not before.
    """

    def __init__(self, changed: Callable[[], object] = lambda: None) -> None:
        self.changed = changed
        self._inside: set[str] = set()
        self._begun: set[str] = set()
        self._alone: str | None = None
        self._suspects: dict[tuple[int, int], tuple[str, asyncio.Future[None]]] = {}
        self._outside: list[asyncio.Future[None]] = []
        self._came = itertools.count()

    @property
    def is_open(self) -> bool:
        """Whether anything may begin."""
        return self._alone is None and not self._suspects

    def may_run(self, job_id: str) -> bool:
        """Tell whether a render may take part in the next pass: it has begun, or may begin."""
        return job_id in self._begun or self._alone == job_id or self.is_open

    def begin(self, job_id: str) -> None:
        """Note that a render begins now."""
        self._begun.add(job_id)

    async def admitted(self, job_id: str) -> None:
        """Begin as soon as that may be, for what runs outside the passes."""
        while not self.may_run(job_id):
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._outside.append(waiting)
            await waiting
        self.begin(job_id)

    def left(self, job_id: str) -> None:
        """Note that the engine is done with a render; one that was entered here has its end there."""
        if job_id not in self._inside:
            self._end(job_id)

    @asynccontextmanager
    async def entered(self, job_id: str, attempts: int) -> AsyncIterator[None]:
        """Be in the process for the length of the block; after `attempts` that ended in a death, wait to be alone."""
        self._inside.add(job_id)
        try:
            if attempts:
                await self._wait(job_id, attempts)
            yield
        finally:
            self._inside.discard(job_id)
            self._end(job_id)

    async def _wait(self, job_id: str, attempts: int) -> None:
        place = (attempts, next(self._came))
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._suspects[place] = (job_id, turn)
        try:
            self._next()
            await turn
        finally:
            self._suspects.pop(place, None)

    def _end(self, job_id: str) -> None:
        self._begun.discard(job_id)
        if self._alone == job_id:
            self._alone = None
        self._next()
        outside, self._outside = self._outside, []
        for waiting in outside:
            if not waiting.done():
                waiting.set_result(None)
        self.changed()

    def _next(self) -> None:
        if self._alone is not None or self._begun or not self._suspects:
            return
        place = min(self._suspects)
        job_id, turn = self._suspects.pop(place)
        if turn.done():  # its task was cancelled a moment ago
            self._next()
            return
        self._alone = job_id
        turn.set_result(None)
