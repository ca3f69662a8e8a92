"""L3 in S3 or a compatible store: write-once objects through conditional PUTs, one client kept open.

`If-None-Match: *` makes the first writer win; 412 means the object is there and its bytes are adopted. Some compatible
stores ignore that header silently and some refuse it (501), so the name is looked up before as well: there a
race of two writers can still replace equal work by equal work, nothing worse. Retries are off and timeouts short,
because a miss is cheaper than a wait; a read must begin to be answered sooner still, within a fifth of the time that
a write may take. botocore's default checksums are off too: some stores reject them, and frames carry digests of their
own. S3 bounds nothing by itself: `encore gc` does, by what objects tell in their metadata.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import aioboto3
from botocore.config import Config
from botocore.exceptions import ClientError

from serve_app.cache.misconfiguration import of_s3
from serve_app.cache.objects.quarantine import FOLDER as QUARANTINE
from serve_app.cache.objects.s3_redirect import FOLDER, LIFE_SECONDS, RedirectCopies, frame_metadata
from serve_app.cache.objects.saved_seconds import HEADER_BYTES
from serve_app.cache.storage_name import checked, is_name
from serve_app.cache.store_secret import MARKER, MARKER_BYTES, Guard, require_own
from serve_app.errors import CorruptEntry, TierError, TierRefused
from serve_app.urls import is_loopback

logger = logging.getLogger(__name__)

_EXISTS = 412
_CONFLICT = 409  # AWS: another conditional write of this name is under way
_NOT_IMPLEMENTED = 501
_EMPTY = 416  # a range of an empty object
_PAGES = 100
_LOADING_SECONDS = 10.0
"""The first client loads botocore, a second or more of a busy machine, which is no fault of the store's."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One object as the listing of its bucket tells it."""

    name: str
    bytes: int
    written_at: datetime


class S3Store:
    """Frames as objects `prefix/ab/<name>` of one bucket.

    endpoint_url: None for AWS, else the compatible store. public_endpoint_url: under which clients reach it, where that
    is another address; URLs are signed for it. Credentials and region default to where AWS tools look
    for them. connect_timeout, timeout: seconds for connecting and for a whole call; the head of an answer to GET or
    HEAD must come within a fifth of the latter. plain: makes copies of videos that clients can be sent to; None: none
    are made. secret: the deployment's; the store must have been written under it (None: not checked). Raises ValueError
    for a prefix that ends like the folders of a store that would lie above it.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        secret: bytes | None = None,
        endpoint_url: str | None = None,
        public_endpoint_url: str | None = None,
        region: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        connect_timeout: float = 0.5,
        timeout: float = 5.0,
        plain: RedirectCopies | None = None,
    ) -> None:
        if f"{prefix.rpartition('/')[2]}/" in (FOLDER, QUARANTINE):
            raise ValueError(f"a store at .../{prefix} would lie among another store's; choose another prefix")
        self._guard = None if secret is None else Guard(partial(require_own, self, secret))
        self._plain = plain
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._endpoint_url = endpoint_url
        self._public_endpoint_url = public_endpoint_url or endpoint_url
        self._timeout = timeout
        self._session = aioboto3.Session(access_key_id, secret_access_key, region_name=region)
        self._config = Config(
            connect_timeout=connect_timeout,
            read_timeout=timeout,
            signature_version="s3v4",  # presigned URLs too
            retries={"total_max_attempts": 1},
            max_pool_connections=32,
            proxies={} if endpoint_url and is_loopback(endpoint_url) else None,  # None: the environment's
            s3={"addressing_style": "path" if endpoint_url else "auto"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        self._open = AsyncExitStack()
        self._client: Any = None
        self._signing_client: Any = None
        self._opening = asyncio.Lock()

    @property
    def locates(self) -> bool:
        """Whether clients can be sent to this store at all."""
        return self._plain is not None

    async def location(self, name: str, digest: str, disposition: str | None = None) -> str | None:
        """Return a URL, good for an hour, whose GET gives the video of that digest; None without one to trust.

        disposition: the Content-Disposition of that answer, which tells the name to save the file under.
        """
        if self._plain is None:
            return None
        async with self._call(name) as (client, where):
            plain = self._plain_key(where)
            copy = await self._head(client, plain)
            if copy is None or not self._plain.may_be_sent_to(name, digest, copy):
                return None
            signing = await self._signing(client)
            wanted = plain | ({} if disposition is None else {"ResponseContentDisposition": disposition})
            url: str = await signing.generate_presigned_url("get_object", Params=wanted, ExpiresIn=LIFE_SECONDS)
            return url

    async def head(self, name: str, length: int) -> bytes | None:
        """Return the object's first `length` bytes, None when there is no such object."""
        async with self._call(name) as (client, where):
            return await self._get(client, where | {"Range": f"bytes=0-{length - 1}"})

    async def get(self, name: str) -> bytes | None:
        """Return the object's bytes, None when there is no such object."""
        async with self._call(name) as (client, where):
            return await self._get(client, where)

    async def put(self, name: str, data: bytes) -> bytes | None:
        """Store `data` unless the name is taken; return what is stored."""
        async with self._call(name) as (client, where):
            while True:
                held = await self._get(client, where) if await self._exists(client, where) else None
                if held is not None:
                    return held
                if await _put_first(client, where, data):
                    await self._put_plain(client, name, where, data)
                    return data
                # Another writer was first and is read in the next round; if that is deleted, the name is free again.

    async def delete(self, name: str) -> bool:
        """Remove the object; True when it was there."""
        async with self._call(name) as (client, where):
            existed = await self._exists(client, where)
            try:
                await client.delete_object(**where)
                await client.delete_object(**self._plain_key(where))  # also when copies were made in the past only
            except ClientError as error:
                raise _refusal(error) from error
            return existed

    async def contains(self, name: str) -> bool:
        """Tell whether the object is there."""
        async with self._call(name) as (client, where):
            return await self._exists(client, where)

    async def names(self) -> AsyncIterator[str]:
        """Yield every stored name, a thousand to a request; `timeout` holds for each request."""
        async for each in self.listed():
            yield each.name

    async def listed(self, *, plain: bool = False) -> AsyncIterator[Listed]:
        """Yield what the bucket's listing tells of every value, or of every plain copy."""
        after: dict[str, str] = {}
        prefix = self._prefix + FOLDER if plain else self._prefix
        while True:
            await self.passed()
            page = await self._page(prefix, after)
            for each in page.get("Contents", ()):
                if (name := _name_of(each["Key"].removeprefix(prefix))) is not None:
                    yield Listed(name, each["Size"], each["LastModified"])
            if not page.get("IsTruncated"):
                return
            after = {"ContinuationToken": page["NextContinuationToken"]}

    async def set_aside(self, name: str, batch: str, *, plain: bool = False) -> bool:
        """Move a value with its plain copy, or the copy alone, into the quarantine; False when it was not there."""
        async with self._call(name) as (client, where):
            moved = [await self._moved(client, self._plain_key(where), batch)]
            if not plain:
                moved.append(await self._moved(client, where, batch))
            return moved[-1]

    async def quarantined(self) -> AsyncIterator[tuple[str, str, int]]:
        """Yield what lies in quarantine: the batch it came with, its key, its bytes."""
        after: dict[str, str] = {}
        while True:
            await self.passed()
            page = await self._page(self._prefix + QUARANTINE, after)
            for each in page.get("Contents", ()):
                yield each["Key"].removeprefix(self._prefix + QUARANTINE).partition("/")[0], each["Key"], each["Size"]
            if not page.get("IsTruncated"):
                return
            after = {"ContinuationToken": page["NextContinuationToken"]}

    async def delete_quarantined(self, key: str) -> None:
        """Delete an object that `quarantined` told; ValueError for any other."""
        if not key.startswith(self._prefix + QUARANTINE):
            raise ValueError("this object does not lie in quarantine")
        await self.passed()
        async with self._mapped() as client:
            await client.delete_object(Bucket=self._bucket, Key=key)

    async def passed(self) -> None:
        """Return when the store is known to be of our secret; raises ForeignStore, TierError."""
        if self._guard is not None:
            await self._guard.passed()

    @property
    def where(self) -> str:
        """How a person knows the store."""
        return f"The store at s3://{self._bucket}/{self._prefix} (ENCORE_L3_URL)"

    async def marker(self) -> bytes | None:
        """Return the store's marker."""
        async with self._mapped() as client:
            return await self._get(client, self._marker_key() | {"Range": f"bytes=0-{MARKER_BYTES - 1}"})

    async def mark(self, marker: bytes) -> bytes:
        """Write the marker unless there is one; return the one that is there."""
        async with self._mapped() as client:
            await _put_first(client, self._marker_key(), marker)
        held = await self.marker()  # read back: some stores take a second one too
        if held is None:
            raise TierRefused("S3: the store's marker was written and is not there.")
        return held

    async def sample(self, count: int) -> AsyncIterator[tuple[str, bytes]]:
        """Yield some names with the first bytes of their values."""
        page = await self._page(self._prefix, {})
        for _ in range(_PAGES):
            for each in page.get("Contents", ()):
                name = _name_of(each["Key"].removeprefix(self._prefix))
                if name is None:
                    continue
                async with self._mapped() as client:
                    where = {"Bucket": self._bucket, "Key": each["Key"], "Range": f"bytes=0-{HEADER_BYTES - 1}"}
                    head = await self._get(client, where)
                if head is not None:
                    yield name, head
                    count -= 1
                if not count:
                    return
            if not page.get("IsTruncated"):
                return
            page = await self._page(self._prefix, {"ContinuationToken": page["NextContinuationToken"]})

    async def metadata(self, name: str) -> dict[str, str] | None:
        """Return what the object tells of itself (`cost-seconds`, `digest`), None when it is not there."""
        async with self._call(name) as (client, where):
            told = await self._head(client, where)
            return None if told is None else told["Metadata"]

    async def delete_plain(self, name: str) -> None:
        """Remove the plain copy of `name`, whether there is one or not."""
        async with self._call(name) as (client, where):
            await client.delete_object(**self._plain_key(where))

    async def _put_plain(self, client: Any, name: str, where: dict[str, str], frame: bytes) -> None:
        """Write the plain copy of a frame that is stored; without one clients get the video through the server."""
        if self._plain is None:
            return
        try:
            copy = await asyncio.to_thread(partial(self._plain.copy_of, name, frame))
            if copy is not None:
                await client.put_object(**self._plain_key(where), **copy)
        except (CorruptEntry, KeyError, ClientError) as error:
            logger.warning("no plain copy of %s: %s", name, error)

    async def _moved(self, client: Any, where: dict[str, str], batch: str) -> bool:
        """Copy an object into the quarantine and delete it; False when it was not there."""
        if not await self._exists(client, where):
            return False
        place = f"{self._prefix}{QUARANTINE}{batch}/{where['Key'].removeprefix(self._prefix)}"
        try:
            await client.copy_object(Bucket=self._bucket, Key=place, CopySource=where)
            await client.delete_object(**where)
        except ClientError as error:
            raise _refusal(error) from error
        return True

    async def _page(self, prefix: str, after: dict[str, str]) -> dict[str, Any]:
        async with self._mapped() as client:
            page: dict[str, Any] = await client.list_objects_v2(Bucket=self._bucket, Prefix=prefix, **after)
        return page

    def _marker_key(self) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": f"{self._prefix}{MARKER}"}

    def _plain_key(self, where: dict[str, str]) -> dict[str, str]:
        return where | {"Key": f"{self._prefix}{FOLDER}{where['Key'].removeprefix(self._prefix)}"}

    async def aclose(self) -> None:
        """Close the client's connections."""
        async with self._opening:
            self._client = None
            await self._open.aclose()

    @asynccontextmanager
    async def _call(self, name: str) -> AsyncIterator[tuple[Any, dict[str, str]]]:
        where = {"Bucket": self._bucket, "Key": f"{self._prefix}{checked(name)[:2]}/{name}"}
        await self.passed()
        async with self._mapped() as client:
            yield client, where

    @asynccontextmanager
    async def _mapped(self) -> AsyncIterator[Any]:
        try:
            async with asyncio.timeout(self._timeout + _LOADING_SECONDS):
                client = await self._connected()
            async with asyncio.timeout(self._timeout):
                yield client
        except TierError as error:
            error.misconfigured = of_s3(error)
            raise
        except Exception as error:  # botocore, aiohttp and the XML parser each have a tree of their own
            failure = TierError(f"S3: {type(error).__name__}: {error}")
            failure.misconfigured = of_s3(error)
            raise failure from error

    async def _connected(self) -> Any:
        async with self._opening:
            if self._client is None:
                client = self._session.client("s3", endpoint_url=self._endpoint_url, config=self._config)
                self._client = await self._open.enter_async_context(client)
            return self._client

    async def _signing(self, client: Any) -> Any:
        """Return the client whose URLs lead where clients can go; it only signs, and connects to nothing."""
        if self._public_endpoint_url == self._endpoint_url:
            return client
        async with self._opening:
            if self._signing_client is None:
                other = self._session.client("s3", endpoint_url=self._public_endpoint_url, config=self._config)
                self._signing_client = await self._open.enter_async_context(other)
            return self._signing_client

    async def _get(self, client: Any, where: dict[str, str]) -> bytes | None:
        try:
            async with asyncio.timeout(self._timeout / 5):
                answer = await client.get_object(**where)
        except ClientError as error:
            if _status(error) == 404 and not _without_bucket(error):
                return None
            if _status(error) == _EMPTY:
                return b""
            raise
        async with answer["Body"] as body:
            data: bytes = await body.read()
        return data

    async def _exists(self, client: Any, where: dict[str, str]) -> bool:
        return await self._head(client, where) is not None

    async def _head(self, client: Any, where: dict[str, str]) -> dict[str, Any] | None:
        try:
            async with asyncio.timeout(self._timeout / 5):
                answer: dict[str, Any] = await client.head_object(**where)
        except ClientError as error:
            if _status(error) == 404:
                return None
            raise
        return answer


async def _put_first(client: Any, where: dict[str, str], data: bytes) -> bool:
    """Put `data` if the name is free; False when it is not."""
    value: dict[str, Any] = where | {"Body": data, "Metadata": frame_metadata(data)}
    try:
        await client.put_object(**value, IfNoneMatch="*")
    except ClientError as error:
        if _status(error) == _NOT_IMPLEMENTED:
            return await _put(client, value)
        if _status(error) in (_EXISTS, _CONFLICT):
            return False
        raise _refusal(error) from error
    return True


async def _put(client: Any, value: dict[str, Any]) -> bool:
    try:
        await client.put_object(**value)
    except ClientError as error:
        raise _refusal(error) from error
    return True


def _name_of(key: str) -> str | None:
    """Return the name of the value that lies there, None for an object in the bucket that is not ours."""
    shard, _, name = key.rpartition("/")
    return name if is_name(name) and shard == name[:2] else None


def _refusal(error: ClientError) -> TierError:
    """Tell how a write failed where a look just before it was answered: full or read-only, but for a missing bucket."""
    failure = TierError if _without_bucket(error) else TierRefused
    return failure(f"S3: {error}")


def _without_bucket(error: ClientError) -> bool:
    code: str = error.response["Error"]["Code"]
    return code == "NoSuchBucket"


def _status(error: ClientError) -> int:
    status: int = error.response["ResponseMetadata"]["HTTPStatusCode"]
    return status
