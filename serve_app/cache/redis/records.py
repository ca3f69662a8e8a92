"""What records of any kind in Redis share: their names, the clock, and what it means that Redis cannot be asked.

Names are HMACs under the deployment secret behind one hash tag a kind: in a cluster one script can touch several.
When Redis is away, or takes no writes, every method says Unavailable: an answer from this process' memory could be
anything but the truth. That counts as an error of the tier, in the circuit that is shared with whatever else asks it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar, TypeVar

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import OutOfMemoryError

from serve_app.cache.redis.redis import RedisTier
from serve_app.cache.redis.script import Script, now_of
from serve_app.cache.storage_name import record_name
from serve_app.errors import TierError, Unavailable
from serve_app.telemetry import Telemetry, TierRead

logger = logging.getLogger(__name__)

T = TypeVar("T")
Client = Redis | RedisCluster
SWEEPS = 50
"""Scripts of one sweep at most; what is left after them waits for the next."""
RETRY_AFTER = 5
"""Seconds after which a Redis that was left alone is asked again."""


class RedisRecords:
    """Records of one `kind`; `redis` belongs to the caller, which closes it.

    clock: for tests, Unix seconds instead of the server's own time.
    """

    kind: ClassVar[str]
    called: ClassVar[str]
    """The records, as an error tells of them."""

    def __init__(
        self,
        redis: RedisTier,
        *,
        secret: bytes,
        telemetry: Telemetry,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._redis = redis
        self._secret = secret
        self._telemetry = telemetry
        self._clock = clock
        self._circuit = redis.circuit

    async def _run(
        self, script: Script, keys: Sequence[str], args: Sequence[bytes | str | float], *, storing: bool = True
    ) -> Any:
        return await self._ask(lambda redis: script.run(redis, keys, args), storing=storing)

    async def _run_again(self, script: Script, keys: Sequence[str], args: Sequence[bytes | str | float]) -> Any:
        """Run a script that makes room before it stores; a server without memory lets it do only that at first."""

        async def run(redis: Client) -> Any:
            try:
                return await script.run(redis, keys, args)
            except OutOfMemoryError:
                return await script.run(redis, keys, args)

        return await self._ask(run, storing=True)

    async def _swept(
        self, script: Script, keys: Sequence[str], args: Sequence[bytes | str | float], at_once: int
    ) -> int:
        """Run a script that removes `at_once` at most until it finds fewer, or SWEEPS times; return how many in all."""
        total = 0
        for _ in range(SWEEPS):
            removed = int(await self._run(script, keys, args, storing=False))
            total += removed
            if removed < at_once:
                break
        return total

    async def _ask(self, call: Callable[[Client], Awaitable[T]], *, storing: bool = False) -> T:
        """Ask Redis; Unavailable when it cannot answer, or cannot keep what is to be kept."""
        began = time.perf_counter()
        try:
            with self._circuit.storing() if storing else self._circuit.attempt():
                return await self._redis.ask(call)
        except TierError as error:
            logger.debug("%s: %s", self.called, error)
            self._telemetry.emit(TierRead(self._circuit.tier, self.kind, "error", time.perf_counter() - began))
            raise Unavailable(
                f"{self.called} cannot be reached just now; try again.", retry_after=RETRY_AFTER
            ) from error

    def _now(self) -> str:
        return now_of(self._clock)

    def _name(self, part: str) -> str:
        return record_name(self._secret, self.kind, part)
