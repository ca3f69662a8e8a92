"""Deletes in the background what invalidations cover, so that they can be retired.

Rules alone make values count as not there; this gives their room back, and is why a rule need not live for ever. A rule
is swept for when it is new (by name if names are all it has, else every stored value's header is looked at) and again
after a day, when nothing begun before it can still be on its way; then it is retired. One process at a time sweeps; one
that dies is followed by another, which begins anew. A value that replaced a covered one between look and deletion
is lost with it: that costs a render, no wrong answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Protocol, cast

from serve_app.cache.circuit import Circuit
from serve_app.cache.envelope import Envelope, Incomplete
from serve_app.cache.invalidation.rules import MICROSECONDS
from serve_app.cache.invalidation.sync import KEPT_SECONDS, RuleSync
from serve_app.cache.objects.saved_seconds import HEADER_BYTES
from serve_app.cache.redis.redis import RedisTier
from serve_app.cache.storage_name import is_name, redis_name
from serve_app.cache.store import ObjectStore, Peeking
from serve_app.core import Entry, Rule
from serve_app.errors import CorruptEntry, TierError
from serve_app.tasks import Periodic

logger = logging.getLogger(__name__)

ROUND_SECONDS = 1.0
LEASE_SECONDS = 10.0
_AT_ONCE = 16
_HEAD = 4096
_NAME_LENGTH = 64
_VALUES = redis_name("0" * _NAME_LENGTH).partition("{")[0]
_KEPT = round(KEPT_SECONDS * MICROSECONDS)


class Shelf(Protocol):
    """A tier as the sweep sees it; every method may raise TierError."""

    def names(self) -> AsyncIterator[str]:
        """Yield every stored name."""
        ...

    async def head(self, name: str) -> Entry | None:
        """Return what the header under `name` says, None when there is nothing that can be read."""
        ...

    async def delete(self, name: str) -> bool:
        """Remove `name`; True when it was there."""
        ...


class RedisShelf:
    """The values of an L2: names are scanned for, of values only the headers are read."""

    def __init__(self, redis: RedisTier, *, secret: bytes) -> None:
        self._redis = redis
        self._envelope = Envelope(secret)

    async def names(self) -> AsyncIterator[str]:
        """Yield the names of values; SCAN may yield one twice."""
        with self._redis.circuit.attempt():
            await self._redis.passed()
        try:
            async for key in self._redis.client.scan_iter(match=f"{_VALUES}*", count=1000):
                name = key.decode(errors="replace")[-_NAME_LENGTH:]
                if is_name(name):
                    yield name
        except Exception as error:  # a broken server can make the parser raise anything
            raise TierError(f"Redis: {type(error).__name__}: {error}") from error

    async def head(self, name: str) -> Entry | None:
        """Return the header, in one round trip unless it is long."""
        with self._redis.circuit.attempt():
            return await self._head(name)

    async def _head(self, name: str) -> Entry | None:
        await self._redis.passed()
        needed = _HEAD
        for _ in range(3):
            try:
                head = cast(bytes, await self._redis.client.getrange(redis_name(name), 0, needed - 1))
            except Exception as error:
                raise TierError(f"Redis: {type(error).__name__}: {error}") from error
            try:
                return self._envelope.glance(name, head) if head else None
            except Incomplete as error:
                if error.needed <= needed:  # the value itself is cut
                    return None
                needed = error.needed
            except CorruptEntry:
                return None
        return None

    async def delete(self, name: str) -> bool:
        """Remove a value."""
        with self._redis.circuit.attempt():
            return bool(await self._redis.delete(redis_name(name)))


class ObjectShelf:
    """The values of an L3; `circuit` is that of the store."""

    def __init__(self, store: ObjectStore, *, secret: bytes, circuit: Circuit | None = None) -> None:
        self._store = store
        self._circuit = circuit or Circuit("l3")
        self._envelope = Envelope(secret)

    def names(self) -> AsyncIterator[str]:
        """Yield every stored name."""
        return self._store.names()

    async def head(self, name: str) -> Entry | None:
        """Return the header; where the store can give it alone, that is no use of the value."""
        store = self._store
        with self._circuit.attempt():
            head = await (store.head(name, HEADER_BYTES) if isinstance(store, Peeking) else store.get(name))
        try:
            return None if head is None else self._envelope.glance(name, head)
        except CorruptEntry:
            return None

    async def delete(self, name: str) -> bool:
        """Remove an object."""
        with self._circuit.attempt():
            return await self._store.delete(name)


class RuleSweeper:
    """Sweeps `shelves` for the rules that `sync` knows; all methods belong to one event loop."""

    def __init__(self, sync: RuleSync, shelves: Iterable[Shelf]) -> None:
        self._sync = sync
        self._shelves = tuple(shelves)
        self._lease = None if sync.redis is None else sync.redis.lease(LEASE_SECONDS)
        self._periodic = Periodic("a sweep", self.round, lambda: ROUND_SECONDS, expected=TierError)
        self._leased_at = 0.0
        self._progress = {"running": False, "sweeps": 0, "seen": 0, "deleted": 0, "retired": 0}

    def start(self) -> None:
        """Begin, on the running event loop; doing so again is harmless."""
        if self._shelves:
            self._periodic.start()

    async def round(self) -> None:
        """Do what there is to do: sweep, retire. Raises TierError when that is cut short."""
        now = self._sync.book.clock.now()
        await self._retire()
        if not self._due(now) or not await self._leads():
            return
        await self._sync.refresh()  # what others have swept meanwhile
        if due := self._due(now):
            await self._sweep(due, now)

    def stats(self) -> dict[str, Any]:
        """Return how many rules there are, how many are still to be swept for, and how far that is."""
        now = self._sync.book.clock.now()
        due = len(self._due(now))
        return {"rules": len(self._sync.book), "epoch": self._sync.epoch, "due": due, **self._progress}

    async def aclose(self) -> None:
        """End, in the middle of a sweep if need be."""
        await self._periodic.aclose()

    def _due(self, now: int) -> tuple[Rule, ...]:
        return tuple(rule for rule in self._sync.book if self._is_due(rule, now))

    def _is_due(self, rule: Rule, now: int) -> bool:
        swept = self._sync.swept.get(rule.label, 0)
        return swept < rule.at or swept < rule.at + _KEPT <= now

    async def _retire(self) -> None:
        swept = self._sync.swept
        over = [rule for rule in self._sync.book if swept.get(rule.label, 0) >= rule.at + _KEPT]
        await self._sync.retire(over)
        if self._sync.redis is not None:
            await self._sync.redis.sweep()
        self._progress["retired"] += len(over)

    async def _sweep(self, due: Sequence[Rule], began: int) -> None:
        self._progress |= {"running": True, "seen": 0, "deleted": 0}
        try:
            by_name = all(rule.kind == "key" and began < rule.at + _KEPT for rule in due)
            for shelf in self._shelves:
                names = _given(rule.label for rule in due) if by_name else shelf.names()
                await self._clear(shelf, names)
            await self._sync.sweep_ended(due, began)
            self._progress["sweeps"] += 1
        finally:
            self._progress["running"] = False

    async def _clear(self, shelf: Shelf, names: AsyncIterator[str]) -> None:
        batch: list[str] = []
        async for name in names:
            batch.append(name)
            if len(batch) == _AT_ONCE:
                await self._clear_batch(shelf, batch)
                batch = []
        await self._clear_batch(shelf, batch)

    async def _clear_batch(self, shelf: Shelf, names: list[str]) -> None:
        if not await self._leads():
            raise TierError("Another process has taken the sweep over.")
        self._progress["seen"] += len(names)
        self._progress["deleted"] += sum(await asyncio.gather(*(self._cleared(shelf, name) for name in names)))

    async def _cleared(self, shelf: Shelf, name: str) -> bool:
        entry = await shelf.head(name)
        return entry is not None and self._sync.book.now.covers_named(name, entry) and await shelf.delete(name)

    async def _leads(self) -> bool:
        """Tell whether this process is the one that sweeps; without Redis each does."""
        if self._lease is None or time.monotonic() - self._leased_at < LEASE_SECONDS / 3:
            return True
        leads = await self._lease.take()
        self._leased_at = time.monotonic() if leads else 0.0
        return leads


async def _given(names: Iterable[str]) -> AsyncIterator[str]:
    for name in names:
        yield name
