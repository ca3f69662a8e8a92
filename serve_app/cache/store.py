"""Where frames rest by storage name, whatever is behind: the one seam between the walk and the shared tiers.

`ObjectStore` is what L3 implements natively (folder, S3) and what `AiocacheStore` makes of an aiocache backend, so
that the walk, the breaker and the checks exist once. Stores know names and bytes, never keys or entries.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol, runtime_checkable
from urllib.parse import urlsplit

from aiocache.base import BaseCache

from serve_app.cache.objects.folder import FolderStore
from serve_app.cache.storage_name import redis_name
from serve_app.errors import TierError
from serve_app.telemetry import Telemetry
from serve_app.urls import path_of


class ObjectStore(Protocol):
    """Bytes by storage name (64 hex digits; anything else is ValueError). Every method may raise TierError."""

    async def get(self, name: str) -> bytes | None:
        """Return the stored bytes, None when there are none."""
        ...

    async def put(self, name: str, data: bytes) -> bytes | None:
        """Store `data`; return the bytes the store holds now, None when it refuses a value of this size.

        The same object comes back when it was stored. A write-once store that had the name before keeps what it
        has, and returns that.
        """
        ...

    async def delete(self, name: str) -> bool:
        """Remove `name`; True when it was there."""
        ...

    async def contains(self, name: str) -> bool:
        """Tell whether `name` is there."""
        ...

    def names(self) -> AsyncIterator[str]:
        """Yield every stored name, a page of them read at a time, in no order; no value is read.

        A name stored or deleted meanwhile may or may not come; all others come once. TierError also from a store
        that cannot list.
        """
        ...

    async def aclose(self) -> None:
        """Close connections; a later call opens them again, a second close does nothing."""
        ...


@runtime_checkable
class Touchable(Protocol):
    """A store whose values live longer when they are used."""

    async def touch(self, name: str) -> None:
        """Count `name` as used now; nothing happens when it is not there."""
        ...


@runtime_checkable
class Extendable(Protocol):
    """A store whose values have a TTL that can be made longer."""

    async def read_for(self, name: str, ttl: float) -> bytes | None:
        """Return the bytes, None when there are none, and keep them for `ttl` seconds from now, never less."""
        ...

    async def extend(self, name: str, ttl: float | None = None) -> bool:
        """Keep `name` for `ttl` seconds from now (None: the store's own), never less; False when it is not there."""
        ...


@runtime_checkable
class Peeking(Protocol):
    """A store that can give a value's first bytes alone."""

    async def head(self, name: str, length: int) -> bytes | None:
        """Return the first `length` bytes, None when there are none; that is no use of the value."""
        ...


@runtime_checkable
class Locating(Peeking, Protocol):
    """A store that can send clients to its values themselves; `locates` tells whether it is to."""

    @property
    def locates(self) -> bool:
        """Whether asking for locations is worth it."""
        ...

    async def location(self, name: str, digest: str, disposition: str | None = None) -> str | None:
        """Return a URL whose GET answers with the payload of that digest alone, and `disposition` as its
        Content-Disposition; None when there is none to trust."""
        ...


class AiocacheStore:
    """Any aiocache backend that takes bytes, as an ObjectStore; a later value overwrites an earlier one.

    Keys are `redis_name`s, whatever the backend: one that is a Redis cluster needs them, the others do not mind.
    """

    def __init__(self, cache: BaseCache) -> None:
        self._cache = cache

    async def get(self, name: str) -> bytes | None:
        """Return the stored bytes, None when there are none."""
        value = await self._cache.get(redis_name(name))
        if value is None or isinstance(value, bytes):
            return value
        raise TierError(f"The backend gave {type(value).__name__} instead of bytes.")

    async def put(self, name: str, data: bytes) -> bytes | None:
        """Store `data` and return it; None when the backend refuses it."""
        return data if await self._cache.set(redis_name(name), data) else None

    async def delete(self, name: str) -> bool:
        """Remove `name`; True when it was there."""
        return bool(await self._cache.delete(redis_name(name)))

    async def contains(self, name: str) -> bool:
        """Tell whether `name` is there."""
        return bool(await self._cache.exists(redis_name(name)))

    async def touch(self, name: str) -> None:
        """Give `name` the backend's full TTL again; one that has longer keeps it, where the backend can tell."""
        if isinstance(self._cache, Extendable):
            await self._cache.extend(redis_name(name))
        elif self._cache.ttl is not None:
            await self._cache.expire(redis_name(name), self._cache.ttl)

    async def names(self) -> AsyncIterator[str]:
        """Raise TierError: aiocache's interface has no listing."""
        raise TierError("An aiocache backend cannot list its names.")
        yield ""  # makes this a generator, so that the error comes to who iterates

    async def read_for(self, name: str, ttl: float) -> bytes | None:
        """Return the stored bytes and keep them for `ttl` seconds from now, as `extend` does."""
        if isinstance(self._cache, Extendable):
            return await self._cache.read_for(redis_name(name), ttl)
        value = await self.get(name)
        if value is not None:
            await self._cache.expire(redis_name(name), ttl)
        return value

    async def extend(self, name: str, ttl: float | None = None) -> bool:
        """Keep `name` for `ttl` seconds from now; a backend that cannot tell what it has left gets just that."""
        if isinstance(self._cache, Extendable):
            return await self._cache.extend(redis_name(name), ttl)
        seconds = ttl or self._cache.ttl
        return (
            await self.contains(name) if seconds is None else bool(await self._cache.expire(redis_name(name), seconds))
        )

    async def aclose(self) -> None:
        """Close the backend's connections."""
        await self._cache.close()


def open_store(
    url: str,
    *,
    max_bytes: int | None = None,
    telemetry: Telemetry | None = None,
    endpoint_url: str | None = None,
    public_endpoint_url: str | None = None,
    region: str | None = None,
    secret: bytes | None = None,
    plain_secret: bytes | None = None,
    timeout: float = 5.0,
    sweep: bool = True,
) -> ObjectStore:
    """Return the L3 that `url` names: `file:///path` (bounded by `max_bytes`, swept at first) or `s3://bucket/prefix`.

    secret: what it must have been written under; None: not checked. timeout: seconds for one answer, whatever is asked.
    endpoint_url, public_endpoint_url, region and plain_secret are for S3 alone; its credentials come from where AWS
    tools look for them.
    With plain_secret videos get plain copies that clients can be sent to. Raises ValueError for any other URL,
    TierError when the folder cannot be made.
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
        return FolderStore(
            path_of(url), max_bytes=max_bytes, secret=secret, timeout=timeout, telemetry=telemetry, sweep=sweep
        )
    if parts.scheme == "s3" and parts.netloc:
        from serve_app.cache.objects.s3 import S3Store  # half a second of imports that a folder does not need
        from serve_app.cache.objects.s3_redirect import RedirectCopies

        plain = None if plain_secret is None else RedirectCopies(plain_secret)
        return S3Store(
            parts.netloc,
            parts.path.strip("/"),
            secret=secret,
            endpoint_url=endpoint_url,
            public_endpoint_url=public_endpoint_url,
            region=region,
            plain=plain,
            timeout=timeout,
        )
    raise ValueError("the object store is file:///path or s3://bucket/prefix")
