"""A URL names the store, and any aiocache backend can be one."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiocache import SimpleMemoryCache

from serve_app.cache.objects.folder import FolderStore
from serve_app.cache.objects.s3 import S3Store
from serve_app.cache.storage_name import redis_name
from serve_app.cache.store import AiocacheStore, Touchable, open_store
from serve_app.errors import TierError

NAME = "ab" * 32


async def test_file_urls(tmp_path: Path) -> None:
    """file:/// opens the folder, escapes in its path decoded."""
    store = open_store(f"file://{tmp_path}/with%20space", max_bytes=1000)
    assert isinstance(store, FolderStore)
    assert (tmp_path / "with space").is_dir()


def test_s3_urls() -> None:
    """s3:// names bucket and prefix."""
    store = open_store("s3://bucket/some/prefix/", endpoint_url="http://127.0.0.1:1", region="us-east-1")
    assert isinstance(store, S3Store)
    assert (store._bucket, store._prefix) == ("bucket", "some/prefix/")


@pytest.mark.parametrize("url", ["", "/tmp/x", "file://host/x", "file:relative", "s3:///prefix", "http://x", "gs://b"])
def test_other_urls_are_refused(url: str) -> None:
    """Anything else is told at start, not at the first request."""
    with pytest.raises(ValueError, match="object store"):
        open_store(url)


async def test_any_aiocache_backend_can_stand_in() -> None:
    """aiocache's own memory backend does what an ObjectStore must."""
    store = AiocacheStore(SimpleMemoryCache())
    assert isinstance(store, Touchable)
    assert await store.get(NAME) is None
    data = b"data"
    assert await store.put(NAME, data) is data
    assert await store.contains(NAME)
    assert await store.get(NAME) == data
    await store.touch(NAME)
    assert (await store.delete(NAME), await store.delete(NAME)) == (True, False)
    await store.aclose()


async def test_a_backend_that_gives_no_bytes_is_broken() -> None:
    """Text (or whatever a mad server's reply parses to) is a TierError, not a crash further up."""
    backend = SimpleMemoryCache()
    await backend.set(redis_name(NAME), "text")
    with pytest.raises(TierError, match="str"):
        await AiocacheStore(backend).get(NAME)


async def test_names_are_checked() -> None:
    """The adapter holds its callers to storage names as the other stores do."""
    with pytest.raises(ValueError, match="storage name"):
        await AiocacheStore(SimpleMemoryCache()).get("plain")


async def test_an_aiocache_backend_cannot_list() -> None:
    """aiocache has no listing, and who iterates is told so as of any other failure of a tier."""
    with pytest.raises(TierError, match="list"):
        await anext(aiter(AiocacheStore(SimpleMemoryCache()).names()))
