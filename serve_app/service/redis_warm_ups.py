"""Warm-ups in Redis: a hash for each (its state, its request, who runs it) and one sorted set of the unfinished.

Each change is one script.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable
from typing import cast

from serve_app.cache.script import Script, milliseconds
from serve_app.service.jobs import ORPHAN_SECONDS
from serve_app.service.redis_records import RedisRecords
from serve_app.service.warm_up import Held, WarmUp
from serve_app.service.warm_ups import Written

logger = logging.getLogger(__name__)

_WRITE, _TAKE, _CLAIM = Script("warm_write", "steady"), Script("warm_take"), Script("job_claim", "steady")


class RedisWarmUps(RedisRecords):
    """A WarmStore that every replica shares."""

    kind = "warm_up"
    called = "Warm-ups"

    @property
    def _unfinished(self) -> str:
        return self._name("/unfinished")

    async def add(self, held: Held, runner: str) -> None:
        """Store a new one, its templates beside it."""
        await self._write(held.warm_up, runner, json.dumps(dict(held.request), separators=(",", ":")))

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
            state = _read(taken[0]) if taken else None
            if state is not None:
                found.append(Held(state, json.loads(taken[1])))
        return tuple(found)

    async def get(self, warm_up_id: str) -> WarmUp | None:
        """Return the state that was written last."""
        name = self._name(warm_up_id)
        return _read(await self._ask(lambda redis: cast(Awaitable[bytes | None], redis.hget(name, "state"))))

    async def _write(self, warm_up: WarmUp, runner: str, request: str) -> Written:
        names = [self._unfinished, self._name(warm_up.id), self._name("/steady")]
        final = "1" if warm_up.status.is_final else ""
        args = (
            self._now(), warm_up.id, runner, warm_up.to_json(), milliseconds(warm_up.expires_at), final, request,
            milliseconds(ORPHAN_SECONDS),
        )  # fmt: skip
        return Written((await self._run(_WRITE, names, args)).decode())


def _read(data: bytes | None) -> WarmUp | None:
    """Return the warm-up of a record; None for what only another release can read."""
    try:
        return None if data is None else WarmUp.from_json(data)
    except (KeyError, TypeError, ValueError) as error:
        logger.warning("a warm-up's record cannot be read: %s %s", type(error).__name__, error)
        return None
