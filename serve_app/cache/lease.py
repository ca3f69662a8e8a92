"""A lease in Redis on work that one process of all should do, such as building the Bloom filters.

It keeps others from doing the same at the same time, which would be a waste; it does not fence: work that must not be
done twice has a token of its own.
"""

from __future__ import annotations

import uuid
from contextlib import suppress

from serve_app.cache.circuit import Circuit
from serve_app.cache.redis import RedisTier
from serve_app.cache.script import Script, milliseconds
from serve_app.errors import TierError

_LEASE = Script("lease")


class Lease:
    """The lease called `work`, for `seconds` from the last `take`; `circuit` is that of the server."""

    def __init__(self, redis: RedisTier, work: str, *, seconds: float = 60.0, circuit: Circuit | None = None) -> None:
        self._redis = redis
        self._circuit = circuit or Circuit("l2")
        self._name = f"encore:lease:{work}"
        self._holder = uuid.uuid4().hex
        self._seconds = seconds

    async def take(self) -> bool:
        """Take the lease, or keep it longer; False when another process has it. Raises TierError."""
        return await self._hold(self._seconds)

    async def give_back(self) -> None:
        """Let others have it at once; if that fails they have it when it runs out."""
        with suppress(TierError):
            await self._hold(0)

    async def _hold(self, seconds: float) -> bool:
        with self._circuit.attempt():
            return bool(await self._redis.run(_LEASE, [self._name], [self._holder, milliseconds(seconds)]))
