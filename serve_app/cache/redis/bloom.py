"""Which names L3 may hold, as Bloom filters in Redis: a video that was never made costs no look into L3.

One filter a shard (`name.SHARDS`), so that in a Redis cluster a key's bits are in the slot of its value and flight, and
the script that looks for those reads them too (`scripts/flight_board.lua`). A name is added before its object is
written, by its writer: a lead that never renders leaves no bits. A filter that is missing, that was never
completed or that lost something says "maybe", as does a Redis that does not answer; names that it could not be told it
is told as soon as it answers again. Only a filter that was built from L3's own list (`bloom_builder.py`) says "no".
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from serve_app.cache.redis.redis import RedisTier
from serve_app.cache.redis.script import Script
from serve_app.cache.storage_name import SHARDS, shard_of, tag
from serve_app.errors import TierError
from serve_app.tasks import detached

logger = logging.getLogger(__name__)

FIRST_LAYER = 256
"""Names that the first layer of a shard's filter has room for, at least."""
FALSE_POSITIVES = 2**-7
"""The share of absent names that a filter takes for stored ones is below this, however far it has grown."""
RETRY_SECONDS = 1.0
_KEPT = 100_000
"""Names kept in memory for a Redis that is away."""

_ASK, _ADD, _BEGIN, _END = (Script(f"bloom_{verb}", "bloom") for verb in ("ask", "add", "begin", "end"))


class BloomFilter:
    """The filters of all shards; raises nothing unless said. `redis` belongs to the caller, which closes it."""

    def __init__(self, redis: RedisTier) -> None:
        self._redis = redis
        self._circuit = redis.circuit
        self._untold: set[str] = set()
        self._telling: asyncio.Task[None] | None = None
        self._lost = 0

    def keys(self, name: str) -> list[str]:
        """Return the Redis keys of a name's filter for a script that calls `may_be_stored`: meta and bits."""
        return _keys(shard_of(name))[:2]

    def answer(self, name: str, found: bytes) -> bool | None:
        """Return what `may_be_stored` said of a name: None when its filter does not know."""
        return True if name in self._untold else {b"1": True, b"0": False}.get(found)

    async def may_have(self, name: str) -> bool | None:
        """Tell whether L3 may hold `name`; None when the filter does not know: then it may."""
        try:
            return self.answer(name, await self._run(_ASK, self.keys(name), [name]))
        except TierError as error:
            logger.debug("Bloom filter: %s", error)
            return None

    async def add(self, name: str) -> None:
        """Say that `name` is about to be written; a Redis that cannot be told now is told later."""
        try:
            await self._run(_ADD, _keys(shard_of(name)), ["", name])
        except TierError as error:
            logger.debug("Bloom filter: %s", error)
            self._remember(name)

    async def begin(self, shard: int, token: str) -> None:
        """Begin to build a shard's filter anew beside the one in use; raises TierError."""
        meta, _, following = _keys(shard)
        await self._run(_BEGIN, [meta, following], [token, FIRST_LAYER])

    async def fill(self, shard: int, token: str, names: Sequence[str]) -> bool:
        """Add stored names to the filter that `token` builds; False when another took over. Raises TierError."""
        return bool(await self._run(_ADD, _keys(shard), [token, *names]))

    async def end(self, shard: int, token: str) -> bool:
        """Bring the filter that `token` built into use; False when another builder took over. Raises TierError."""
        return bool(await self._run(_END, _keys(shard), ["", token]))

    async def shards(self) -> list[dict[str, int] | None]:
        """Return of each shard capacity, layers, names and built_at (Unix milliseconds); None without a filter.

        Raises TierError.
        """
        fields = ("capacity", "layers", "names", "built_at")
        looks = (self._redis.fields(_keys(shard)[0], ("complete", *fields)) for shard in range(SHARDS))
        with self._circuit.attempt():
            found = await asyncio.gather(*looks)
        return [
            {field: int(value or 0) for field, value in zip(fields, values, strict=True)} if complete == b"1" else None
            for complete, *values in found
        ]

    def stats(self) -> dict[str, Any]:
        """Return how many names Redis is still to be told, how many were lost to the bound, and the breaker's state."""
        return {"untold": len(self._untold), "lost": self._lost, "breaker": str(self._circuit.reach.state)}

    async def aclose(self) -> None:
        """Try once more to tell what is untold."""
        if self._telling is not None:
            self._telling.cancel()
        await self._tell(self._untold)

    def _remember(self, name: str) -> None:
        if len(self._untold) >= _KEPT:
            self._lost += 1
            return
        self._untold.add(name)
        if self._telling is None or self._telling.done():
            self._telling = detached(self._tell_later())

    async def _tell_later(self) -> None:
        while self._untold:
            await asyncio.sleep(RETRY_SECONDS)
            await self._tell(self._untold)

    async def _tell(self, names: Iterable[str]) -> None:
        shards: dict[int, list[str]] = defaultdict(list)
        for name in names:
            shards[shard_of(name)].append(name)
        for shard, untold in shards.items():
            try:
                await self._run(_ADD, _keys(shard), ["", *untold])
            except TierError:
                return
            self._untold.difference_update(untold)

    async def _run(self, script: Script, keys: Sequence[str], args: Sequence[str | float]) -> Any:
        with self._circuit.attempt():
            return await self._redis.run(script, keys, args)


def _keys(shard: int) -> list[str]:
    """Return the Redis keys of a shard's filter: meta, bits, and the bits of the one that is being built."""
    return [f"encore:bloom:{tag(shard)}{part}" for part in ("meta", "bits", "next")]
