"""L1: the entries this process used last, bounded in bytes; a hit costs a microsecond and awaits nothing.

It is an aiocache `BaseCache`, so plugins and other aiocache code work on it, and it has a synchronous door beside
that (`get_now`, `set_now`, `delete_now`), because a coroutine alone would cost more than the look-up. Values are
immutable entries and handed out as they are, without a copy. It belongs to one event loop. Values are content, so
there is no counting or locking here: `increment`, `raw` and aiocache's locks stay unimplemented.
"""

from __future__ import annotations

import math
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from aiocache.base import BaseCache
from aiocache.serializers import NullSerializer

from serve_app.core import Entry
from serve_app.telemetry import Evicted, Telemetry

_OVERHEAD = 1024
"""Bytes charged for an entry beside its value: key, digest, metadata and the table's own slots."""


class _Slot(NamedTuple):
    value: Any
    bytes: int
    expires_at: float


class MemoryTier(BaseCache):  # type: ignore[misc]  # aiocache ships no types
    """An LRU of at most `max_bytes`; a value over `max_share` of that is refused, it would empty the rest."""

    NAME = "memory"

    def __init__(
        self,
        max_bytes: int,
        *,
        max_share: float = 0.25,
        telemetry: Telemetry | None = None,
        clock: Callable[[], float] = time.monotonic,
        timeout: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(serializer=NullSerializer(encoding=None), timeout=timeout, **options)
        self.max_bytes = max_bytes
        self.max_value_bytes = int(max_bytes * max_share)
        self._telemetry = telemetry or Telemetry()
        self._clock = clock
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._bytes = 0
        self._evicted = 0
        self._refused = 0

    def get_now(self, key: str) -> Entry | None:
        """Return the entry and make it the most recently used, or None; awaits nothing."""
        slot = self._live(key)
        if slot is None:
            return None
        self._slots.move_to_end(key)
        value: Entry = slot.value
        return value

    def set_now(self, key: str, value: Entry, ttl: float | None = None) -> bool:
        """Keep `value`, evicting the least recently used; False when it is too large to be kept."""
        size = _size(key, value)
        self.delete_now(key)
        if size > self.max_value_bytes:
            self._refused += 1
            return False
        self._slots[key] = _Slot(value, size, self._clock() + ttl if ttl else math.inf)
        self._bytes += size
        self._make_room()
        return True

    def delete_now(self, key: str) -> bool:
        """Drop `key`; True when it was here."""
        slot = self._slots.pop(key, None)
        if slot is None:
            return False
        self._bytes -= slot.bytes
        return slot.expires_at > self._clock()

    def drop_now(self, unwanted: Callable[[Entry], bool]) -> tuple[str, ...]:
        """Drop every entry that is `unwanted`; return their keys."""
        keys = tuple(key for key, slot in self._slots.items() if unwanted(slot.value))
        for key in keys:
            self.delete_now(key)
        return keys

    def contains_now(self, key: str) -> bool:
        """Tell whether `key` is here, without making it recently used."""
        return self._live(key) is not None

    def stats(self) -> dict[str, int]:
        """Return entries and bytes held, the bound, and how many were evicted and refused so far."""
        return {
            "entries": len(self._slots),
            "bytes": self._bytes,
            "max_bytes": self.max_bytes,
            "evicted": self._evicted,
            "refused": self._refused,
        }

    def _live(self, key: str) -> _Slot | None:
        slot = self._slots.get(key)
        if slot is not None and slot.expires_at <= self._clock():
            self.delete_now(key)
            return None
        return slot

    def _make_room(self) -> None:
        count, before = 0, self._bytes
        while self._bytes > self.max_bytes:
            _, slot = self._slots.popitem(last=False)
            self._bytes -= slot.bytes
            count += 1
        if count:
            self._evicted += count
            self._telemetry.emit(Evicted("l1", count, before - self._bytes))

    # What aiocache's public methods call.

    async def _get(self, key: str, encoding: str | None = None, _conn: Any = None) -> Any:
        return self.get_now(key)

    async def _multi_get(self, keys: list[str], encoding: str | None = None, _conn: Any = None) -> list[Any]:
        return [self.get_now(key) for key in keys]

    async def _set(
        self, key: str, value: Any, ttl: float | None = None, _cas_token: Any = None, _conn: Any = None
    ) -> bool:
        return self.set_now(key, value, ttl)

    async def _multi_set(self, pairs: list[tuple[str, Any]], ttl: float | None = None, _conn: Any = None) -> bool:
        kept = [self.set_now(key, value, ttl) for key, value in pairs]
        return all(kept)

    async def _add(self, key: str, value: Any, ttl: float | None = None, _conn: Any = None) -> bool:
        if self.contains_now(key):
            raise ValueError(f"{key} already exists")  # aiocache's contract of `add`
        return self.set_now(key, value, ttl)

    async def _exists(self, key: str, _conn: Any = None) -> bool:
        return self.contains_now(key)

    async def _expire(self, key: str, ttl: float, _conn: Any = None) -> bool:
        slot = self._live(key)
        if slot is not None:
            self._slots[key] = slot._replace(expires_at=self._clock() + ttl if ttl else math.inf)
        return slot is not None

    async def _delete(self, key: str, _conn: Any = None) -> int:
        return int(self.delete_now(key))

    async def _clear(self, namespace: str | None = None, _conn: Any = None) -> bool:
        for key in [key for key in self._slots if key.startswith(namespace or "")]:
            self.delete_now(key)
        return True


def _size(key: str, value: Any) -> int:
    return _OVERHEAD + len(key) + (value.size if isinstance(value, Entry) else sys.getsizeof(value))
