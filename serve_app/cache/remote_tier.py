"""One shared tier as the walk sees it: entries in, entries out, never an exception.

Here meet, once for every kind of store: the secret name, the frame and its check, the circuit breakers, the span and
the event. A store that fails, hangs or lies is a miss with a counter. What does not verify, and what its reader says
is invalidated, is deleted, so that the next render can take its place.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

from serve_app.cache.circuit import Circuit
from serve_app.cache.envelope import Envelope, FormerFrame
from serve_app.cache.objects.saved_seconds import HEADER_BYTES
from serve_app.cache.redis.bloom import BloomFilter
from serve_app.cache.storage_name import Kind, storage_name
from serve_app.cache.store import Extendable, Locating, ObjectStore, Touchable
from serve_app.core import Entry
from serve_app.errors import CorruptEntry, TierError, TierFull
from serve_app.telemetry import Telemetry, TierRead, TierWritten, span

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
Stale = Callable[[Entry], bool]
"""Whether an entry does not count any more: it was invalidated."""
_TRIES = 3
_LARGE = 1 << 20
"""Frames above this many bytes are hashed in a thread (a millisecond and more); below, the hop would cost more."""


def never(entry: Entry) -> bool:
    """Nothing is stale."""
    return False


class RemoteTier:
    """`store` as the tier `l2` or `l3` of one kind of value; what `bloom` says is not there is not looked for.

    circuit: that of its server, shared with whatever else asks it.
    """

    def __init__(
        self,
        tier: str,
        kind: Kind,
        store: ObjectStore,
        *,
        secret: bytes,
        telemetry: Telemetry,
        bloom: BloomFilter | None = None,
        circuit: Circuit | None = None,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.tier = tier
        self.kind = kind
        self.circuit = circuit or Circuit(tier, telemetry)
        self._store = store
        self._secret = secret
        self._envelope = Envelope(secret)
        self._telemetry = telemetry
        self._bloom = bloom
        self._timer = timer
        self._counts: Counter[str] = Counter()

    async def read(self, key: str, may_have: bool | None = None, stale: Stale = never) -> Entry | None:
        """Return the verified entry of `key`, None when there is none, or a stale one, or the tier is broken.

        may_have: what the filter said already; None asks it now, where there is one.
        """
        started = self._timer()
        with span("tier", tier=self.tier, kind=self.kind, operation="read") as current:
            result, entry = await self._read(key, may_have, stale)
            current.set_attribute("encore.result", result)
        self._counts[result] += 1
        seconds = self._timer() - started
        self._telemetry.emit(TierRead(self.tier, self.kind, result, seconds, entry.size if entry else 0))
        return entry

    async def arrived(self, key: str, frame: bytes | None, seconds: float, stale: Stale = never) -> Entry | None:
        """Take what a caller read from this tier in a script of its own, as `read` would have: verified and counted."""
        result, entry = ("miss", None) if frame is None else await self._checked(key, frame, stale)
        self._counts[result] += 1
        self._telemetry.emit(TierRead(self.tier, self.kind, result, seconds, entry.size if entry else 0))
        return entry

    async def write(self, entry: Entry, stale: Stale = never) -> Entry | None:
        """Store `entry`; return what the tier holds now, None if nothing.

        That is an earlier one if the tier is write-once and has one that is not stale.
        """
        started = self._timer()
        with span("tier", tier=self.tier, kind=self.kind, operation="write") as current:
            result, held = await self._write(entry, stale)
            current.set_attribute("encore.result", result)
        self._counts[f"write_{result}"] += 1
        self._telemetry.emit(TierWritten(self.tier, self.kind, result, self._timer() - started, entry.size))
        return held

    async def delete(self, key: str) -> bool | None:
        """Remove `key`: whether it was there, None when the tier could not be asked."""
        return await self._ask(self._store.delete, key)

    async def contains(self, key: str) -> bool | None:
        """Tell whether `key` is there, unverified; None when the tier could not be asked."""
        return await self._ask(self._store.contains, key)

    async def touch(self, key: str) -> bool:
        """Let `key` live longer, where the store knows of such a thing; False when the tier could not be asked."""
        store = self._store
        return not isinstance(store, Touchable) or await self._ask(_done(store.touch), key) is not None

    async def verified(self, key: str, ttl: float, stale: Stale) -> bool:
        """Keep `key` for `ttl` seconds from now; whether it is there, whole and not `stale`; that is no use."""
        store = self._store
        if not isinstance(store, Extendable):
            return False
        frame = await self._ask(lambda name: store.read_for(name, ttl), key)
        return frame is not None and (await self._checked(key, frame, stale))[1] is not None

    async def extend(self, key: str, ttl: float | None) -> bool:
        """Keep `key` for `ttl` seconds from now (None: as after a use); whether it is there, as far as is known."""
        store = self._store
        return isinstance(store, Extendable) and bool(await self._ask(lambda name: store.extend(name, ttl), key))

    async def probe(self) -> None:
        """Ask the store for something that it does not have, past the filter, so that `circuit` knows how it is."""
        await self._ask(self._store.get, "")

    @property
    def locates(self) -> bool:
        """Whether the store may send clients to its values."""
        return isinstance(self._store, Locating) and self._store.locates

    async def location(self, key: str, stale: Stale, disposition: str | None = None) -> str | None:
        """Return a URL of the payload of `key` itself; None when there is none to trust, or the value is `stale`."""
        store = self._store
        if not isinstance(store, Locating):
            return None
        head = await self._ask(lambda name: store.head(name, HEADER_BYTES), key)
        try:
            entry = None if head is None else self._envelope.glance(self._name(key), head)
        except CorruptEntry:
            return None  # told and deleted when it is read
        if entry is None or stale(replace(entry, key=key)):
            return None
        url = await self._ask(lambda name: store.location(name, entry.digest, disposition), key)
        self._counts["redirect"] += url is not None
        return url

    def stats(self) -> dict[str, Any]:
        """Return how many reads and writes had which result, and the breakers' states."""
        return {**self._counts, **self.circuit.stats()}

    async def aclose(self) -> None:
        """Close the store."""
        try:
            await self._store.aclose()
        except Exception as error:
            self._log(error)

    async def _read(self, key: str, may_have: bool | None, stale: Stale) -> tuple[str, Entry | None]:
        name = self._name(key)
        if may_have is None and self._bloom is not None:
            may_have = await self._bloom.may_have(name)
        if may_have is False:
            return "filtered", None
        try:
            with self.circuit.attempt():
                frame = await self._store.get(name)
        except Exception as error:
            self._log(error)
            return "error", None
        return ("miss", None) if frame is None else await self._checked(key, frame, stale)

    async def _checked(self, key: str, frame: bytes, stale: Stale) -> tuple[str, Entry | None]:
        try:
            entry = await self._verified(key, frame)
            if not stale(entry):
                return "hit", entry
            await self.delete(key)
            return "invalidated", None
        except FormerFrame:
            await self.delete(key)
            return "miss", None
        except CorruptEntry as error:
            logger.warning("%s held a corrupt %s, deleted: %s", self.tier, self.kind, error)
            await self.delete(key)
            return "corrupt", None

    async def _write(self, entry: Entry, stale: Stale) -> tuple[str, Entry | None]:
        frame = self.pack(entry)
        if self._bloom is not None:
            await self._bloom.add(self._name(entry.key))  # before it can be there
        for _ in range(_TRIES):  # again only when what was there before turned out corrupt or stale
            try:
                with self.circuit.storing():
                    held = await self._store.put(self._name(entry.key), frame)
            except TierFull:
                return "too_full", None
            except Exception as error:
                self._log(error)
                return "error", None
            if held is None:
                return "too_large", None
            if held is frame:
                return "stored", entry
            try:
                earlier = await self._verified(entry.key, held)
                if not stale(earlier):
                    return "exists", earlier
            except CorruptEntry:
                pass
            await self.delete(entry.key)
        return "error", None

    async def _ask(self, call: Callable[[str], Awaitable[_T]], key: str) -> _T | None:
        try:
            with self.circuit.attempt():
                return await call(self._name(key))
        except Exception as error:
            self._log(error)
            self._counts["error"] += 1
            return None

    def pack(self, entry: Entry) -> bytes:
        """Return the frame in which a tier stores `entry`."""
        return self._envelope.pack(self._name(entry.key), entry)

    async def _verified(self, key: str, frame: bytes) -> Entry:
        unpack, name = self._envelope.unpack, self._name(key)
        return unpack(name, key, frame) if len(frame) <= _LARGE else await asyncio.to_thread(unpack, name, key, frame)

    def _name(self, key: str) -> str:
        return storage_name(self._secret, self.kind, key)

    def _log(self, error: Exception) -> None:
        """Tell of a failure: a TierError is expected trouble, anything else wants its traceback."""
        expected = isinstance(error, TierError)
        logger.log(logging.DEBUG if expected else logging.ERROR, "%s: %s", self.tier, error, exc_info=not expected)


def _done(call: Callable[[str], Awaitable[None]]) -> Callable[[str], Awaitable[bool]]:
    async def asked(name: str) -> bool:
        await call(name)
        return True

    return asked
