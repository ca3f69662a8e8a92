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

from serve_app.cache.name import checked, is_name
from serve_app.cache.s3_plain import FOLDER, LIFE_SECONDS, PlainCopies, frame_metadata
from serve_app.errors import CorruptEntry, TierError, TierRefused

logger = logging.getLogger(__name__)

_EXISTS = 412
_CONFLICT = 409  # AWS: another conditional write of this name is under way
_NOT_IMPLEMENTED = 501
_EMPTY = 416  # a range of an empty object


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
    are made.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        public_endpoint_url: str | None = None,
        region: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        connect_timeout: float = 0.5,
        timeout: float = 5.0,
        plain: PlainCopies | None = None,
    ) -> None:
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

    async def location(self, name: str, digest: str) -> str | None:
        """Return a URL, good for an hour, whose GET gives the video of that digest; None without one to trust."""
        if self._plain is None:
            return None
        async with self._call(name) as (client, where):
            plain = self._plain_key(where)
            copy = await self._head(client, plain)
            if copy is None or not self._plain.may_be_sent_to(name, digest, copy):
                return None
            signing = await self._signing(client)
            url: str = await signing.generate_presigned_url("get_object", Params=plain, ExpiresIn=LIFE_SECONDS)
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
                # Somebody was first and is read in the next round; if it was deleted since, the name is free again.

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
            async with self._mapped() as client:
                page = await client.list_objects_v2(Bucket=self._bucket, Prefix=prefix, **after)
            for each in page.get("Contents", ()):
                shard, _, name = each["Key"].removeprefix(prefix).rpartition("/")
                if is_name(name) and shard == name[:2]:  # else something of somebody else's in the bucket
                    yield Listed(name, each["Size"], each["LastModified"])
            if not page.get("IsTruncated"):
                return
            after = {"ContinuationToken": page["NextContinuationToken"]}

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
        async with self._mapped() as client:
            yield client, where

    @asynccontextmanager
    async def _mapped(self) -> AsyncIterator[Any]:
        try:
            client = await self._connected()  # the first time a second of loading botocore: no fault of the store's
            async with asyncio.timeout(self._timeout):
                yield client
        except TierError:
            raise
        except Exception as error:  # botocore, aiohttp and the XML parser each have a tree of their own
            raise TierError(f"S3: {type(error).__name__}: {error}") from error

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
