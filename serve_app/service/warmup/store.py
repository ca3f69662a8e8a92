"""Where warm-ups are kept: two stores with one contract, in this process' memory, and in Redis (`redis_warm_ups`).

As with jobs, the runner of a warm-up writes its state every second; one whose runner fell silent is an orphan, and
`claim` gives it to one other. From then on the earlier runner's writes are refused, should it come back.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from serve_app.clock import steady
from serve_app.errors import Busy
from serve_app.service.jobs.store import ORPHAN_SECONDS
from serve_app.service.warmup.record import Held, WarmUp


class Written(StrEnum):
    """What became of a write. Only after the first does the writer go on."""

    STORED = "stored"
    LOST = "lost"
    ENDED = "ended"
    GONE = "gone"
    FULL = "full"


UNFINISHED = 100
"""Warm-ups under way at most, in the whole cluster: each may hold a megabyte of templates."""
KEPT = 1_000
"""Warm-ups kept at most; beyond, the oldest finished ones are forgotten."""


def full() -> Busy:
    """Return the error for one warm-up too many."""
    return Busy(f"{UNFINISHED} warm-ups are under way; try again when one has ended, or cancel one.", retry_after=30)


class WarmStore(Protocol):
    """Records of warm-ups; every method raises Unavailable when they cannot be reached. runner: an id of a process."""

    async def add(self, held: Held, runner: str) -> None:
        """Store a new one, or anew one that was lost; when this returns, it survives this process. Raises Busy."""
        ...

    async def write(self, warm_up: WarmUp, runner: str | None) -> Written:
        """Write the newest state, and say that it is run; None: this is its end, wherever it runs.

        LOST: another runner has it. ENDED: it has ended before. GONE: the store knows of none.
        """
        ...

    async def claim(self, limit: int, runner: str) -> tuple[Held, ...]:
        """Return up to `limit` orphans, which are this runner's from now on."""
        ...

    async def get(self, warm_up_id: str) -> WarmUp | None:
        """Return the state that was written last."""
        ...

    async def sweep(self) -> int:
        """Remove what has expired, and what is too much; return how many."""
        ...


class MemoryWarmUps:
    """Warm-ups of one process, forgotten when they expire."""

    def __init__(self, clock: Callable[[], float] = steady) -> None:
        self._clock = clock
        self._held: dict[str, Held] = {}
        self._runners: dict[str, tuple[str, float]] = {}

    async def add(self, held: Held, runner: str) -> None:
        """Store a new one."""
        unfinished = sum(not each.warm_up.status.is_final for each in self._held.values())
        if held.warm_up.id not in self._held and unfinished >= UNFINISHED:
            raise full()
        self._held[held.warm_up.id] = held
        self._runners[held.warm_up.id] = (runner, self._clock())

    async def write(self, warm_up: WarmUp, runner: str | None) -> Written:
        """Write the newest state."""
        held = self._held.get(warm_up.id)
        if held is None:
            return Written.GONE
        if held.warm_up.status.is_final:
            return Written.ENDED
        if runner is not None and self._runners[warm_up.id][0] != runner:
            return Written.LOST
        self._held[warm_up.id] = Held(warm_up, held.request)
        self._runners[warm_up.id] = (runner or "", self._clock())
        return Written.STORED

    async def claim(self, limit: int, runner: str) -> tuple[Held, ...]:
        """Return orphans."""
        due = self._clock() - ORPHAN_SECONDS
        orphans = [
            held
            for known, held in self._held.items()
            if not held.warm_up.status.is_final and self._runners[known][1] <= due
        ][: max(0, limit)]
        for held in orphans:
            self._runners[held.warm_up.id] = (runner, self._clock())
        return tuple(orphans)

    async def get(self, warm_up_id: str) -> WarmUp | None:
        """Return the state that was written last."""
        held = self._held.get(warm_up_id)
        return None if held is None or held.warm_up.expires_at <= self._clock() else held.warm_up

    async def sweep(self) -> int:
        """Remove what has expired, and the oldest finished ones beyond KEPT."""
        by_end = sorted(self._held.values(), key=lambda each: each.warm_up.expires_at)
        due = [each for each in by_end if each.warm_up.expires_at <= self._clock()]
        finished = [each for each in by_end[len(due) :] if each.warm_up.status.is_final]
        due += finished[: max(0, len(by_end) - len(due) - KEPT)]
        for each in due:
            del self._held[each.warm_up.id], self._runners[each.warm_up.id]
        return len(due)
