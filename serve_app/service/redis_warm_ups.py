"""Warm-ups in Redis: a hash for each (its state, its request, who runs it) and one sorted set of the unfinished.

Each change is one script. Names are HMACs under the deployment secret and share a hash tag, so that a cluster keeps
them in one slot. When Redis is away every method says Unavailable, as the job records do.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import RedisError

from serve_app.cache.breaker import Breaker
from serve_app.cache.script import Script, milliseconds
from serve_app.errors import TierError, Unavailable
from serve_app.service.jobs import ORPHAN_SECONDS
from serve_app.service.warm_up import Held, WarmUp
from serve_app.service.warm_ups import Written
from serve_app.telemetry import Telemetry, TierRead

logger = logging.getLogger(__name__)

T = TypeVar("T")
_WRITE, _TAKE, _CLAIM = Script("warm_write"), Script("warm_take"), Script("job_claim")
RETRY_AFTER = 5


class RedisWarmUps:
    """A WarmStore that every replica shares; whoever gave it `redis` closes that. clock: for tests, Unix seconds."""

    def __init__(
        self,
        redis: Redis | RedisCluster,
        *,
        secret: bytes,
        telemetry: Telemetry,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._redis = redis
        self._secret = secret
        self._telemetry = telemetry
        self._clock = clock
        self._breaker = Breaker("l2/warm_up", retry_after=RETRY_AFTER)
        self._unfinished = self._name("/unfinished")

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
        for claimed in await self._run(_CLAIM, [self._unfinished], args):
            warm_up_id = claimed.decode()
            taken = await self._run(_TAKE, [self._unfinished, self._name(warm_up_id)], (warm_up_id, runner))
            state = _read(taken[0]) if taken else None
            if state is not None:
                found.append(Held(state, json.loads(taken[1])))
        return tuple(found)

    async def get(self, warm_up_id: str) -> WarmUp | None:
        """Return the state that was written last."""
        name = self._name(warm_up_id)
        return _read(await self._ask(lambda: cast(Awaitable[bytes | None], self._redis.hget(name, "state"))))

    async def _write(self, warm_up: WarmUp, runner: str, request: str) -> Written:
        names = [self._unfinished, self._name(warm_up.id)]
        final = "1" if warm_up.status.is_final else ""
        args = (
            self._now(), warm_up.id, runner, warm_up.to_json(), milliseconds(warm_up.expires_at), final, request
        )  # fmt: skip
        return Written((await self._run(_WRITE, names, args)).decode())

    async def _run(self, script: Script, keys: Sequence[str], args: Sequence[bytes | str | float]) -> Any:
        return await self._ask(lambda: script.run(self._redis, keys, args))

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """Ask Redis; Unavailable when it cannot answer: a broken server can make the parser raise anything."""
        began = time.perf_counter()
        try:
            with self._breaker.attempt():
                return await call()
        except Exception as error:
            expected = isinstance(error, RedisError | OSError | TierError)
            logger.log(logging.DEBUG if expected else logging.ERROR, "warm-ups: %s", error, exc_info=not expected)
            self._telemetry.emit(TierRead("l2", "warm_up", "error", time.perf_counter() - began))
            raise Unavailable("Warm-ups cannot be reached just now; try again.", retry_after=RETRY_AFTER) from error

    def _now(self) -> str:
        return "" if self._clock is None else str(milliseconds(self._clock()))

    def _name(self, part: str) -> str:
        text = f"warm_up:{part}".encode("utf-8", "surrogatepass")
        return "encore:{warm_up}:" + hmac.new(self._secret, text, hashlib.sha256).hexdigest()


def _read(data: bytes | None) -> WarmUp | None:
    """Return the warm-up of a record; None for what only another release can read."""
    try:
        return None if data is None else WarmUp.from_json(data)
    except (KeyError, TypeError, ValueError) as error:
        logger.warning("a warm-up's record cannot be read: %s %s", type(error).__name__, error)
        return None
