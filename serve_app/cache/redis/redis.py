"""L2: a Redis or Valkey shared by all replicas; reading is one round trip that also extends the value's life.

It is an aiocache `BaseCache` over bytes, so any aiocache backend could stand in for it. It answers or raises
TierError within `deadline` seconds: timeouts are short and redis-py's own retries with back-off are off, because
a miss is cheaper than a wait. TTLs are retention, not freshness; each is spread by ±`jitter` so that what was stored
together does not vanish together. In a cluster, a node that is gone takes its share of the keys along and no others.
`increment`, `raw` and aiocache's locks stay unimplemented: values are content.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, cast

from aiocache.base import BaseCache
from aiocache.serializers import NullSerializer
from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError

from serve_app.cache.circuit import Circuit
from serve_app.cache.misconfiguration import of_redis
from serve_app.cache.objects.saved_seconds import HEADER_BYTES
from serve_app.cache.redis.cluster import ClusterAddress, is_cluster
from serve_app.cache.redis.script import Script
from serve_app.cache.storage_name import is_name, redis_name
from serve_app.cache.store_secret import MARKER_BYTES, Guard, require_own
from serve_app.errors import TierError, TierFull, TierRefused

_MARKER = "encore:{store}:secret"
_NAME_LENGTH = 64
_VALUES = redis_name("0" * _NAME_LENGTH).partition("{")[0]
_SCANS = 100
"""Of how many thousand keys of a server a value is looked for, where nothing tells whose they are."""
WEEK = 7 * 24 * 3600.0
_READ, _EXTEND = Script("read", "keep"), Script("extend", "keep")
_WRITE = Script("write", "memory", "room")
_TOO_FULL = 2
RESERVE = 0.2
"""The share of a server's memory that values leave to the records it holds too, where nothing is evicted for them."""
_NO_WRITES = re.compile(r"\b(OOM|READONLY|MISCONF|NOREPLICAS)\b")
"""How Redis says that it answers, but takes no writes: memory or disk full, a replica, a primary without replicas."""
_T = TypeVar("_T")


class RedisTier(BaseCache):  # type: ignore[misc]  # aiocache ships no types
    """Bytes by name under `redis://`, `rediss://` or `unix://`, or in a cluster (`redis+cluster://`, see `cluster.py`).

    ttl: seconds a value is kept after its last use. max_value_bytes: larger values are refused (`set` gives False).
    connect_timeout, socket_timeout: seconds for one connect and one socket read or write; deadline: seconds for a whole
    call, with the wait for one of max_connections. secret: the deployment's; what is there must have been written under
    it (None: not checked). reserve: the share of `maxmemory` that values leave free, because the server holds records
    too (see RESERVE). uniform: random numbers in [0, 1) for the jitter.
    """

    NAME = "redis"

    def __init__(
        self,
        url: str,
        *,
        ttl: float = WEEK,
        jitter: float = 0.1,
        max_value_bytes: int = 64 << 20,
        connect_timeout: float = 0.5,
        socket_timeout: float = 0.5,
        deadline: float = 2.0,
        max_connections: int = 32,
        secret: bytes | None = None,
        reserve: float = 0.0,
        circuit: Circuit | None = None,
        uniform: Callable[[], float] = random.random,
        **options: Any,
    ) -> None:
        super().__init__(serializer=NullSerializer(encoding=None), timeout=None, ttl=ttl, **options)
        self.max_value_bytes = max_value_bytes
        self.reserve = reserve
        self.circuit = circuit or Circuit("l2")
        self._jitter = jitter
        self._uniform = uniform
        self._deadline = deadline
        self._guard = None if secret is None else Guard(partial(require_own, self, secret))
        self._url = url
        self._options: dict[str, Any] = {"socket_connect_timeout": connect_timeout}
        self._address = ClusterAddress.parse(url) if is_cluster(url) else None
        self._places = asyncio.Semaphore(max_connections)  # a cluster's client refuses what it has no connection for
        self.client: Redis | RedisCluster
        if self._address is not None:
            self.client = self._address.connect(
                socket_timeout=socket_timeout, max_connections=4 * max_connections, **self._options
            )
        else:
            self.client = self._single(socket_timeout, max_connections)

    def check(self) -> None:
        """Raise TypeError or ValueError for a parameter of the URL that no connection takes; nothing is connected."""
        if isinstance(self.client, Redis):
            self.client.connection_pool.make_connection()  # type: ignore[no-untyped-call]

    @property
    def is_cluster(self) -> bool:
        """Whether the keys are on several servers, of which some may answer while others do not."""
        return self._address is not None

    def new_client(self) -> Redis:
        """Return a client with one connection of its own, for messages: its reads may wait as long as they like."""
        options = {"single_connection_client": True, "retry": Retry(NoBackoff(), 0), **self._options}
        if self._address is not None and isinstance(self.client, RedisCluster):
            return self._address.connect_any(self.client, **options)
        return Redis.from_url(self._url, **options)

    def _single(self, socket_timeout: float, max_connections: int) -> Redis:
        pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
            self._url,
            max_connections=max_connections,
            timeout=self._deadline,  # a burst of calls is not a broken server
            socket_timeout=socket_timeout,
            retry=Retry(NoBackoff(), 0),
            **self._options,
        )
        return Redis.from_pool(pool)

    def keep_for(self, ttl: float | None = None) -> int:
        """Return for how many milliseconds a value that is written or used now is kept; ttl: seconds of its own."""
        return self._milliseconds(ttl or self.ttl or WEEK)

    async def read_for(self, name: str, ttl: float) -> bytes | None:
        """Return `name` and keep it for `ttl` seconds from now, or longer if it would be anyway."""
        value: bytes | None = await self.run(_READ, [name], [self.keep_for(ttl)])
        return value

    async def extend(self, name: str, ttl: float | None = None) -> bool:
        """Keep `name` for `ttl` seconds from now, or longer if it would be anyway; False when it is not there."""
        return bool(await self.run(_EXTEND, [name], [self.keep_for(ttl)]))

    async def ask(self, call: Callable[[Redis | RedisCluster], Awaitable[_T]]) -> _T:
        """Ask the server anything, within the deadline; raises TierError, TierRefused when it takes no writes."""
        return await self._ask(call(self.client))

    async def fields(self, name: str, fields: Sequence[str]) -> list[bytes | None]:
        """Return fields of a hash, None for those it lacks; raises TierError."""
        found: list[bytes | None] = await self._ask(cast(Awaitable[Any], self.client.hmget(name, list(fields))))
        return found

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[bytes | str | float]) -> Any:
        """Run a script of `scripts/` on this server; raises TierError."""
        return await self._ask(script.run(self.client, keys, args))

    async def passed(self) -> None:
        """Return when what is there is known to be of our secret; raises ForeignStore, TierError."""
        if self._guard is not None:
            await self._guard.passed()

    @property
    def where(self) -> str:
        """How a person knows the server; its URL may hold a password."""
        return "What the Redis of ENCORE_REDIS_URL holds"

    async def marker(self) -> bytes | None:
        """Return the marker."""
        return await self._range(_MARKER, MARKER_BYTES) or None

    async def mark(self, marker: bytes) -> bytes:
        """Write the marker, which no eviction takes, unless there is one; return the one that is there."""
        await self._call(self.client.set(_MARKER, marker, nx=True))
        return await self.marker() or marker

    async def sample(self, count: int) -> AsyncIterator[tuple[str, bytes]]:
        """Yield some names with the first bytes of their values, of the part of the server that is looked at."""
        for key in await self._call(self._some_keys(f"{_VALUES}*", count)):
            name = key.decode(errors="replace")[-_NAME_LENGTH:]
            if is_name(name) and (head := await self._range(redis_name(name), HEADER_BYTES)):
                yield name, head

    async def _range(self, name: str, length: int) -> bytes:
        return cast(bytes, await self._call(self.client.getrange(name, 0, length - 1)))

    async def _some_keys(self, pattern: str, count: int) -> list[bytes]:
        keys: list[bytes] = []
        if isinstance(self.client, RedisCluster):
            async for key in self.client.scan_iter(match=pattern, count=1000):
                keys.append(key)
                if len(keys) >= count:
                    break
            return keys
        cursor = 0
        for _ in range(_SCANS):
            cursor, found = await self.client.scan(cursor, match=pattern, count=1000)
            keys += cast(list[bytes], found)
            if not cursor or len(keys) >= count:
                break
        return keys[:count]

    async def _ask(self, call: Awaitable[_T]) -> _T:
        """Await `call` once the server is known to be ours; raises TierError."""
        if self._guard is not None:
            try:
                await self._guard.passed()
            except BaseException:
                if asyncio.iscoroutine(call):
                    call.close()
                raise
        return await self._call(call)

    async def _call(self, call: Awaitable[_T]) -> _T:
        """Await `call`; whatever it raises is a TierError: a broken server can make the parser raise anything."""
        try:
            async with asyncio.timeout(self._deadline):
                if self._address is None:
                    return await call
                async with self._places:
                    return await call
        except Exception as error:
            if asyncio.iscoroutine(call):
                call.close()  # it may not have come to its turn
            if isinstance(error, ReadOnlyError) or not isinstance(error, ResponseError):
                await self._reconnect()
            kind = TierRefused if _takes_no_writes(error) else TierError
            failure = kind(f"Redis: {type(error).__name__}: {error}")
            failure.misconfigured = of_redis(error)
            raise failure from error

    async def _reconnect(self) -> None:
        """Let the next calls connect anew, not find out one by one that all idle connections are dead.

        Or, with a server that was demoted, that they lead to the wrong one. What answers next may be another server.
        """
        if self._guard is not None:
            self._guard.forget()
        if isinstance(self.client, Redis):  # a cluster's client looks for the new primary by itself
            with suppress(Exception):
                await self.client.connection_pool.disconnect(inuse_connections=False)

    def _milliseconds(self, ttl: float) -> int:
        spread = 1 + self._jitter * (2 * self._uniform() - 1)
        return max(1, round(ttl * 1000 * spread))

    # What aiocache's public methods call.

    async def _get(self, key: str, encoding: str | None = None, _conn: Any = None) -> bytes | None:
        milliseconds = 0 if self.ttl is None else self._milliseconds(self.ttl)
        value: bytes | None = await self.run(_READ, [key], [milliseconds])
        return value

    async def _multi_get(self, keys: list[str], encoding: str | None = None, _conn: Any = None) -> list[bytes | None]:
        return [await self._get(key) for key in keys]

    async def _set(
        self, key: str, value: bytes, ttl: float | None = None, _cas_token: Any = None, _conn: Any = None
    ) -> bool:
        if len(value) > self.max_value_bytes:
            return False
        return await self._write(key, value, ttl)

    async def _multi_set(self, pairs: list[tuple[str, bytes]], ttl: float | None = None, _conn: Any = None) -> bool:
        kept = [await self._set(key, value, ttl) for key, value in pairs]
        return all(kept)

    async def _add(self, key: str, value: bytes, ttl: float | None = None, _conn: Any = None) -> bool:
        if len(value) > self.max_value_bytes:
            return False
        if not await self._write(key, value, ttl, new="1"):
            raise ValueError(f"{key} already exists")  # aiocache's contract of `add`
        return True

    async def _write(self, key: str, value: bytes, ttl: float | None, new: str = "") -> bool:
        args = [value, self._milliseconds(ttl) if ttl else "", new, self.reserve]
        written = await self.run(_WRITE, [key], args)
        if written == _TOO_FULL:
            raise too_full()
        return bool(written)

    async def _exists(self, key: str, _conn: Any = None) -> bool:
        return bool(await self._ask(self.client.exists(key)))

    async def _expire(self, key: str, ttl: float, _conn: Any = None) -> bool:
        if not ttl:  # aiocache: 0 takes the TTL away
            return bool(await self._ask(self.client.persist(key)))
        return bool(await self._ask(self.client.pexpire(key, self._milliseconds(ttl))))

    async def _delete(self, key: str, _conn: Any = None) -> int:
        return int(await self._ask(self.client.unlink(key)))

    async def _clear(self, namespace: str | None = None, _conn: Any = None) -> bool:
        if not namespace:
            raise ValueError("clear needs a namespace: the server may hold more than this cache")
        await self._ask(self._clear_all(f"{namespace}*"))
        return True

    async def _clear_all(self, pattern: str) -> None:
        async for key in self.client.scan_iter(match=pattern, count=1000):
            await self.client.unlink(key)

    async def _close(self, *args: Any, _conn: Any = None, **kwargs: Any) -> None:
        await self._call(self.client.aclose())


def too_full() -> TierFull:
    """Return the error of a write that would take memory which is for records."""
    return TierFull(
        "Redis: the memory that is left is for job records (maxmemory; give records a jobs_url of their own)"
    )


def _takes_no_writes(error: Exception) -> bool:
    refused = isinstance(error, OutOfMemoryError | ReadOnlyError)
    return refused or (isinstance(error, ResponseError) and _NO_WRITES.search(str(error)) is not None)
