"""L3 on a real SeaweedFS: conditional writes, stores that know none, and stores that are dead or silent."""

from __future__ import annotations

import asyncio
import time

import pytest

from serve_app.cache.objects.s3 import S3Store
from serve_app.errors import TierError

NAME = "ab" * 32


@pytest.fixture
async def store(s3_store):
    """A store in a prefix of the test's own."""
    store = s3_store()
    yield store
    await store.aclose()


def without_condition(client) -> None:
    """Make the client's PUTs reach the server without the If-None-Match header, as if the store ignored it."""

    def strip(params, **_) -> None:
        del params["headers"]["If-None-Match"]

    client.meta.events.register("before-call.s3.PutObject", strip)


async def test_seaweedfs_honours_the_condition(store: S3Store) -> None:
    """The raw conditional PUT answers 412 when the object is there: what `put` builds on is real."""
    client = await store._connected()
    where = {"Bucket": store._bucket, "Key": "condition/" + store._prefix}
    await client.put_object(**where, Body=b"first", IfNoneMatch="*")
    with pytest.raises(client.exceptions.ClientError) as refused:
        await client.put_object(**where, Body=b"second", IfNoneMatch="*")
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412


async def test_a_writer_between_look_and_write_wins(store: S3Store, s3_store, monkeypatch) -> None:
    """Both looked, both saw nothing: the condition decides, and the later one adopts the earlier one's bytes."""
    other = s3_store()
    looked = asyncio.Event()

    async def slow_put(params, **_) -> None:
        if not looked.is_set():
            looked.set()
            await other.put(NAME, b"first")

    client = await store._connected()
    client.meta.events.register("before-call.s3.PutObject", slow_put)
    assert await store.put(NAME, b"second") == b"first"
    assert looked.is_set()
    assert await store.get(NAME) == b"first"
    await other.aclose()


async def test_a_store_that_ignores_the_condition(store: S3Store) -> None:
    """Where the header means nothing, the look before the write still makes the first writer win."""
    client = await store._connected()
    without_condition(client)
    for _ in range(2):
        await client.put_object(Bucket=store._bucket, Key=f"ignored/{store._prefix}", Body=b"", IfNoneMatch="*")
    data = b"first"
    assert await store.put(NAME, data) is data
    assert await store.put(NAME, b"second") == b"first"
    assert await store.get(NAME) == b"first"


async def test_a_store_that_refuses_the_condition(talking) -> None:
    """A store that answers 501 to the header is written to without it."""
    requests: list[bytes] = []

    def answer(request: bytes) -> bytes:
        requests.append(request)
        if request.startswith(b"HEAD"):
            status = b"404 Not Found"
        else:
            status = b"501 Not Implemented" if b"if-none-match" in request.lower() else b"200 OK"
        return b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n"

    port = await talking(answer)
    store = local(port)
    data = b"data"
    assert await store.put(NAME, data) is data
    assert [request.split(b" ")[0] for request in requests if b"HTTP/1.1" in request] == [b"HEAD", b"PUT", b"PUT"]
    await store.aclose()


async def test_a_missing_bucket_is_no_miss(s3_server) -> None:
    """A wrong bucket is a configuration error to be counted, not a cache that is always empty."""
    store = local(int(s3_server.endpoint_url.rpartition(":")[2]), bucket="there-is-no-such-bucket")
    with pytest.raises(TierError, match="NoSuchBucket"):
        await store.get(NAME)
    await store.aclose()


def local(port: int, bucket: str = "bucket", timeout: float = 20.0) -> S3Store:
    """A store at a port of this machine; the first call also loads botocore, a second and more when it is busy."""
    return S3Store(
        bucket,
        endpoint_url=f"http://127.0.0.1:{port}",
        region="us-east-1",
        access_key_id="a",
        secret_access_key="b",
        connect_timeout=0.3,
        timeout=timeout,
    )


async def test_a_dead_store_is_a_tier_error_at_once(refused_port: int) -> None:
    """Every call fails fast when nobody listens; there are no retries."""
    store = local(refused_port)
    await store._connected()
    for call in (store.get(NAME), store.put(NAME, b""), store.delete(NAME), store.contains(NAME)):
        started = time.monotonic()
        with pytest.raises(TierError):
            await call
        assert time.monotonic() - started < 20
    await store.aclose()


async def test_a_silent_store_times_out(hanging_port: int) -> None:
    """A store that takes the connection and never answers costs the timeout, not a hang."""
    store = local(hanging_port, timeout=1.0)
    started = time.monotonic()
    with pytest.raises(TierError):
        await store.get(NAME)
    assert time.monotonic() - started < 60
    await store.aclose()


async def test_a_garbage_store_is_a_tier_error(talking) -> None:
    """Answers that are not HTTP, or not S3's XML, are a TierError."""
    for nonsense in (b"\x00\xff" * 20, b"HTTP/1.1 500 Oops\r\nContent-Length: 5\r\n\r\n<a><b"):
        store = local(await talking(lambda _, nonsense=nonsense: nonsense))
        with pytest.raises(TierError):
            await store.get(NAME)
        await store.aclose()


async def test_it_works_again_after_closing(store: S3Store) -> None:
    """Closing twice is harmless and a later call opens a new client."""
    await store.put(NAME, b"data")
    await store.aclose()
    await store.aclose()
    assert await store.get(NAME) == b"data"


async def test_nothing_but_a_storage_name_becomes_an_object_key(store: S3Store) -> None:
    """A path as a name is refused before the store hears of it."""
    with pytest.raises(ValueError, match="storage name"):
        await store.get("../other-bucket/secret")


async def test_names_are_all_that_is_stored(store: S3Store, monkeypatch) -> None:
    """Every stored name comes once over several pages, and nothing else that lies under the prefix."""
    client = await store._connected()
    stored = {f"{number:02x}" * 32 for number in range(12)}
    for each in stored:
        await store.put(each, b"data")
    await client.put_object(Bucket=store._bucket, Key=f"{store._prefix}stray", Body=b"")
    await client.put_object(Bucket=store._bucket, Key=f"{store._prefix}00/{'ff' * 32}", Body=b"")
    pages = []

    def small(params, **_) -> None:
        params["MaxKeys"] = 5
        pages.append(params)

    client.meta.events.register("provide-client-params.s3.ListObjectsV2", small)
    assert sorted([each async for each in store.names()]) == sorted(stored)
    assert len(pages) == 3


async def test_a_head_is_the_first_bytes(store: S3Store) -> None:
    """Of an object that is longer, shorter, empty, or not there."""
    for number, data in enumerate((bytes(range(100)), b"abc", b"")):
        await store.put(f"{number:064x}", data)
        assert await store.head(f"{number:064x}", 10) == data[:10]
    assert await store.head(NAME, 10) is None
