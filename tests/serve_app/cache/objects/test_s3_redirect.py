"""Plain copies on a real SeaweedFS: a client that is sent there gets the video alone, or is not sent there."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from serve_app.cache.envelope import Envelope
from serve_app.cache.objects.s3 import S3Store
from serve_app.cache.objects.s3_redirect import RedirectCopies
from serve_app.cache.storage_name import storage_name
from serve_app.core import Entry
from tests.serve_app.cache import frames

KEY, OTHER = "1f" * 32, "2e" * 32
NAME, OTHER_NAME = (storage_name(b"secret", "video", key) for key in (KEY, OTHER))
VIDEO = bytes(range(256)) * 40


def framed(data: bytes = VIDEO, key: str = KEY, secret: bytes = b"secret") -> bytes:
    meta = {"content_type": "video/mp4", "render_seconds": 2.5, "encode_seconds": 0.5}
    return Envelope(secret).pack(storage_name(b"secret", "video", key), Entry.of(key, data, meta))


@pytest.fixture
async def store(s3_store: Callable[..., S3Store]) -> Any:
    store = s3_store(plain=RedirectCopies(b"secret"))
    yield store
    await store.aclose()


async def fetched(url: str, **headers: str) -> Any:
    def fetch() -> tuple[int, str, bytes]:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()

    return await asyncio.to_thread(fetch)


async def located(store: S3Store, name: str = NAME) -> str | None:
    """Ask for the location of what lies under `name`."""
    told = await store.metadata(name)
    return await store.location(name, told.get("digest", ""))


def plain_key(store: S3Store, name: str = NAME) -> dict[str, str]:
    return {"Bucket": store._bucket, "Key": f"{store._prefix}plain/{name[:2]}/{name}"}


async def test_the_url_gives_the_video_alone(store: S3Store) -> None:
    """No credentials, no header of ours before it, its own type, and ranges as a player asks for them."""
    await store.put(NAME, framed())
    url = await located(store)
    assert url is not None
    assert await fetched(url) == (200, "video/mp4", VIDEO)
    assert await fetched(url, Range="bytes=256-511") == (206, "video/mp4", VIDEO[256:512])


async def test_urls_lead_where_clients_can_go(s3_store: Callable[..., S3Store], s3_server: Any) -> None:
    """With a public endpoint URLs are signed for that host; the store itself is reached by its own."""
    public = urlsplit(s3_server.endpoint_url)._replace(netloc=f"localhost:{urlsplit(s3_server.endpoint_url).port}")
    store = s3_store(plain=RedirectCopies(b"secret"), public_endpoint_url=public.geturl())
    await store.put(NAME, framed())
    url = await located(store)
    assert url is not None
    assert urlsplit(url).netloc == public.netloc != urlsplit(s3_server.endpoint_url).netloc
    assert await fetched(url) == (200, "video/mp4", VIDEO)
    await store.aclose()


async def test_without_the_setting_nothing_is_stored_twice(s3_store: Callable[..., S3Store]) -> None:
    """A store that is not to send clients away makes no copies, and has no location for those that others made."""
    store = s3_store()
    await store.put(NAME, framed())
    client = await store._connected()
    page = await client.list_objects_v2(Bucket=store._bucket, Prefix=store._prefix)
    assert [each["Key"] for each in page["Contents"]] == [f"{store._prefix}{NAME[:2]}/{NAME}"]
    assert not store.locates
    assert await located(store) is None
    await store.aclose()


async def test_only_what_clients_play_is_copied(store: S3Store) -> None:
    """Latents and embeddings say no type, other bytes are no frame; both are stored, neither has a location."""
    for name, data in ((NAME, frames.framed(Entry.of(KEY, b"latents"), secret=b"secret")), (OTHER_NAME, b"no frame")):
        assert await store.put(name, data) is data
        assert await located(store, name) is None


async def test_deleting_deletes_the_copy(store: S3Store, s3_store: Callable[..., S3Store]) -> None:
    """Also where copies were made in the past only: a URL that was handed out ends with its video."""
    await store.put(NAME, framed())
    url = await located(store)
    other = s3_store()
    assert await other.delete(NAME)
    await other.aclose()
    with pytest.raises(OSError, match="404"):
        await fetched(url)


async def forged(store: S3Store, client: Any) -> None:
    data = VIDEO[::-1]
    other = b"another secret"
    forgery = RedirectCopies(other).copy_of(NAME, framed(secret=other))
    original = RedirectCopies(other).copy_of(NAME, framed(data, secret=other))
    await client.put_object(**plain_key(store), **original | {"Metadata": original["Metadata"] | {
        "digest": forgery["Metadata"]["digest"]}})  # fmt: skip


async def cut(store: S3Store, client: Any) -> None:
    copy = RedirectCopies(b"secret").copy_of(NAME, framed())
    await client.put_object(**plain_key(store), **copy | {"Body": VIDEO[:-1]})


async def swapped(store: S3Store, client: Any) -> None:
    await client.copy_object(**plain_key(store), CopySource=plain_key(store, OTHER_NAME))


async def another_type(store: S3Store, client: Any) -> None:
    copy = RedirectCopies(b"secret").copy_of(NAME, framed())
    await client.put_object(**plain_key(store), **copy | {"ContentType": "text/html"})


async def of_another_render(store: S3Store, client: Any) -> None:
    copy = RedirectCopies(b"secret").copy_of(NAME, framed(VIDEO + b"other bytes of the same key"))
    await client.put_object(**plain_key(store), **copy)


async def unstamped(store: S3Store, client: Any) -> None:
    await client.put_object(**plain_key(store), Body=VIDEO, ContentType="video/mp4")


@pytest.mark.parametrize("spoil", [forged, cut, swapped, another_type, of_another_render, unstamped])
async def test_nobody_is_sent_to_what_does_not_verify(store: S3Store, spoil: Any) -> None:
    """A copy that is not what was made of the frame that is there has no location."""
    await store.put(NAME, framed())
    await store.put(OTHER_NAME, framed(VIDEO[::-1], OTHER))
    assert await located(store) is not None
    await spoil(store, await store._connected())
    assert await located(store) is None
    assert await located(store, OTHER_NAME) is not None


async def test_a_copy_that_fails_fails_no_write(store: S3Store) -> None:
    """The frame is stored all the same; clients get the video through the server."""
    client = await store._connected()

    async def refuse(params: Any, **_: Any) -> None:
        if "/plain/" in params["url_path"]:
            params["headers"]["x-amz-storage-class"] = "NONE OF THESE"
            params["headers"]["If-Match"] = '"never"'

    client.meta.events.register("before-call.s3.PutObject", refuse)
    data = framed()
    assert await store.put(NAME, data) is data
    assert frames.opened(await store.get(NAME), KEY, secret=b"secret").data == VIDEO
    assert await located(store) is None


async def test_objects_tell_what_they_save(store: S3Store) -> None:
    """The metadata of a frame's object has its cost and digest, so that nobody must read it to weigh it."""
    await store.put(NAME, framed())
    client = await store._connected()
    told = await client.head_object(Bucket=store._bucket, Key=f"{store._prefix}{NAME[:2]}/{NAME}")
    assert told["Metadata"] == {"cost-seconds": "3", "digest": Entry.of(KEY, VIDEO).digest}
