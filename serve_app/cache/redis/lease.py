"""A lease in Redis on work that one process of all should do, such as building the Bloom filters.

It keeps others from doing the same at the same time, which would be a waste; it does not fence: work that must not be
done twice has a token of its own. That it has run out is seen by the clock of the process that wants it
(`heartbeat_age`), not by the server's.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from serve_app.cache.redis.heartbeat_age import Silence
from serve_app.cache.redis.redis import RedisTier
from serve_app.cache.redis.script import Script, milliseconds
from serve_app.errors import TierError

_LEASE = Script("lease")
_CLEARED_AFTER = 86_400.0
"""Seconds: longer than a step of the server's clock, which TTLs go by."""


class Lease:
    """The lease called `work`, for `seconds` from the last `take`; `circuit` is that of the server.

    Who is refused has it that long after the holder was last seen to take it, if it asks again.
    """

    def __init__(
        self,
        redis: RedisTier,
        work: str,
        *,
        seconds: float = 60.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis
        self._circuit = redis.circuit
        self._name = f"encore:lease:{work}"
        self._holder = uuid.uuid4().hex
        self._seconds = seconds
        self._silence = Silence(monotonic, longest_gap=seconds)
        self._numbers = itertools.count()

    async def take(self) -> bool:
        """Take the lease, or keep it longer; False when another process has it. Raises TierError."""
        return await self._hold(_CLEARED_AFTER)

    async def give_back(self) -> None:
        """Let others have it at once; if that fails they have it when it runs out."""
        with suppress(TierError):
            await self._hold(0)

    async def _hold(self, seconds: float) -> bool:
        silent = cast(bytes | None, self._silence.version(self._name, self._seconds))
        args: list[bytes | str | float] = [
            self._holder,
            milliseconds(seconds),
            silent or b"",
            f"{self._holder} {next(self._numbers)}",
        ]
        with self._circuit.attempt():
            held: bytes = await self._redis.run(_LEASE, [self._name], args)
        if held:
            self._silence.saw(self._name, held)
        return not held
