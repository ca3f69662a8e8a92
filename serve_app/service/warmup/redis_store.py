"""Warm-ups in Redis: a hash for each (its state, its request, who runs it), sorted sets of the unfinished and of all.

Each change is one script. Nothing has a TTL, which an eviction policy could use: `sweep` removes what has expired.
"""

from __future__ import annotations

import json
import logging

from serve_app.cache.redis.records import RedisRecords
from serve_app.cache.redis.script import Script, milliseconds
from serve_app.service.jobs.store import ORPHAN_SECONDS
from serve_app.service.warmup.record import Held, WarmUp
from serve_app.service.warmup.store import KEPT, UNFINISHED, Written, full

logger = logging.getLogger(__name__)

_WRITE = Script("warm_write", "steady")
_TAKE, _GET, _DUE, _FORGET = (Script(f"warm_{verb}") for verb in ("take", "get", "due", "forget"))
_CLAIM = Script("job_claim", "steady")
_SWEPT_AT_ONCE = 200


class RedisWarmUps(RedisRecords):
    """A WarmStore that every replica shares."""

    kind = "warm_up"
    called = "Warm-ups"

    @property
    def _unfinished(self) -> str:
        return self._name("/unfinished")

    @property
    def _all(self) -> str:
        return self._name("/all")

    async def add(self, held: Held, runner: str) -> None:
        """Store a new one, its templates beside it."""
        written = await self._write(held.warm_up, runner, json.dumps(dict(held.request), separators=(",", ":")))
        if written is Written.FULL:
            raise full()

    async def write(self, warm_up: WarmUp, runner: str | None) -> Written:
        """Write the newest state."""
        return await self._write(warm_up, runner or "", "")

    async def claim(self, limit: int, runner: str) -> tuple[Held, ...]:
        """Return orphans; one that cannot be read, or has gone meanwhile, is left out."""
        args = (self._now(), milliseconds(ORPHAN_SECONDS), max(0, limit))
        found = []
        for claimed in await self._run(_CLAIM, [self._unfinished, self._name("/steady")], args):
            warm_up_id = claimed.decode()
            taken = await self._run(_TAKE, [self._unfinished, self._name(warm_up_id)], (warm_up_id, runner))
            state = read_warm_up(taken[0]) if taken else None
            if state is not None:
                found.append(Held(state, json.loads(taken[1])))
        return tuple(found)

    async def get(self, warm_up_id: str) -> WarmUp | None:
        """Return the state that was written last."""
        names = [self._name(warm_up_id), self._all]
        return read_warm_up(await self._run(_GET, names, (self._now(), _member(warm_up_id)), storing=False))

    async def sweep(self) -> int:
        """Remove what has expired, and the oldest finished ones beyond KEPT."""
        sets = [self._unfinished, self._all]
        due = await self._run(_DUE, sets, (self._now(), _SWEPT_AT_ONCE, KEPT), storing=False)
        if due:
            await self._run(_FORGET, sets + [self._name(each.decode()) for each in due], due, storing=False)
        return len(due)

    async def _write(self, warm_up: WarmUp, runner: str, request: str) -> Written:
        names = [self._unfinished, self._name(warm_up.id), self._all, self._name("/steady")]
        final = "1" if warm_up.status.is_final else ""
        args = (
            self._now(), warm_up.id, runner, warm_up.to_json(), milliseconds(warm_up.expires_at), final, request,
            UNFINISHED, milliseconds(ORPHAN_SECONDS),
        )  # fmt: skip
        return Written((await self._run(_WRITE, names, args)).decode())


def _member(warm_up_id: str) -> bytes:
    return warm_up_id.encode("utf-8", "surrogatepass")  # as a client gave it


def read_warm_up(data: bytes | None) -> WarmUp | None:
    """Return the warm-up of a record; None for what only another release can read."""
    try:
        return None if data is None else WarmUp.from_json(data)
    except (KeyError, TypeError, ValueError) as error:
        logger.warning("a warm-up's record cannot be read: %s %s", type(error).__name__, error)
        return None
