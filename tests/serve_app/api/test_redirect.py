"""The setting `s3_redirect` end to end: a client of the API, a player and the Encore client, on a real SeaweedFS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serve_app.api.api import build_api
from serve_app.cache.cache import TieredCache
from serve_app.cache.memory import MemoryTier
from serve_app.cache.objects.s3 import S3Store
from serve_app.cache.objects.s3_redirect import RedirectCopies
from serve_app.client import AsyncEncore
from serve_app.core import EVERYTHING, Entry, Rule
from serve_app.media import encode_mp4
from tests.serve_app.api.uvicorn_server import serving
from tests.serve_app.cache.frames import framed
from tests.serve_app.service.rig import SECRET, TINY, Rig

FILM = encode_mp4(np.random.default_rng(1).integers(0, 255, (8, 64, 64, 3)).astype(np.uint8), fps=8)


@dataclass
class S3Rig(Rig):
    """A rig whose L3 is an S3Store; every router has an L1 of its own."""

    store: Callable[[], S3Store] | None = None

    def cache(self, *, l1: bool = True, kind: Any = "video", **options: Any) -> TieredCache:
        assert self.store is not None
        tiers = {"l1": MemoryTier(1 << 22) if l1 else None, "l3": self.store()}
        return TieredCache(kind, secret=SECRET, telemetry=self.telemetry, **tiers, **options)


@pytest.fixture
async def rig(s3_server: Any, s3_prefix: str) -> AsyncIterator[S3Rig]:
    where = {
        "endpoint_url": s3_server.endpoint_url,
        "region": s3_server.region,
        "access_key_id": s3_server.access_key_id,
        "secret_access_key": s3_server.secret_access_key,
    }
    made = S3Rig(
        None,
        store=lambda: S3Store(
            s3_server.bucket, s3_prefix, connect_timeout=60, timeout=300, plain=RedirectCopies(SECRET), **where
        ),
    )
    made.renderer.data, made.renderer.meta = FILM, {"content_type": "video/mp4"}
    yield made
    await made.aclose()


@pytest.fixture
async def addresses(rig: S3Rig) -> AsyncIterator[tuple[str, str]]:
    """Two routers over one store of jobs; what the first one made, the second has in L3 alone."""
    jobs = rig.jobs()
    apps = [build_api(rig.service(jobs=jobs, max_queued=4), max_body_bytes=10_000) for _ in range(2)]
    async with serving(apps[0]) as one, serving(apps[1]) as two:
        yield one, two


async def completed(address: str) -> str:
    async with AsyncEncore(address) as encore:
        job = await encore.create("a red circle moves left", **TINY)
        async for _ in encore.events(job.id):
            pass
    return f"/v1/videos/{job.id}/content"


async def test_what_only_s3_has_is_answered_by_a_redirect(addresses: tuple[str, str]) -> None:
    """The router that made the video serves it, another sends the client to S3, where the very file is."""
    one, two = addresses
    path = await completed(one)
    async with httpx.AsyncClient() as http:
        served, sent = await http.get(one + path), await http.get(two + path)
        assert (served.status_code, served.content) == (200, FILM)
        assert (sent.status_code, sent.content) == (307, b"")
        assert sent.headers["cache-control"] == "no-store"
        assert sent.headers["x-encore-key"] == served.headers["x-encore-key"]
        assert "hit" in sent.headers["cache-status"]
        there = await http.get(sent.headers["location"], headers={"Range": "bytes=0-99"})
        assert (there.status_code, there.headers["content-type"], there.content) == (206, "video/mp4", FILM[:100])
        assert there.headers["content-disposition"] == served.headers["content-disposition"]
        assert f'filename="{path.split("/")[3]}.mp4"' in there.headers["content-disposition"]
        followed = await http.get(two + path, follow_redirects=True)
        assert followed.content == FILM


async def test_what_a_redirect_cannot_answer_is_answered_here(addresses: tuple[str, str]) -> None:
    """A conditional request is answered by the router, which has the video in memory from then on."""
    one, two = addresses
    path = await completed(one)
    async with httpx.AsyncClient() as http:
        assert (await http.get(two + path)).status_code == 307
        etag = (await http.get(one + path)).headers["etag"]
        assert (await http.get(two + path, headers={"If-None-Match": etag})).status_code == 304
        assert (await http.get(two + path)).status_code == 200


@pytest.mark.parametrize(("method", "variant"), [("HEAD", "video"), ("GET", "thumbnail")])
async def test_what_no_presigned_url_answers(addresses: tuple[str, str], method: str, variant: str) -> None:
    """A presigned URL is for the GET of one object."""
    one, two = addresses
    path = await completed(one)
    async with httpx.AsyncClient() as http:
        answer = await http.request(method, two + path, params={"variant": variant})
    assert answer.status_code == 200


async def test_a_spoilt_copy_is_not_sent_to(rig: S3Rig, addresses: tuple[str, str]) -> None:
    """The video comes through the server, verified, when the copy is not what was written."""
    one, two = addresses
    path = await completed(one)
    async with httpx.AsyncClient() as http:
        assert (await http.get(two + path)).status_code == 307
    store = rig.store()
    [name] = [each async for each in store.names()]
    client = await store._connected()
    await client.put_object(
        Bucket=store._bucket, Key=f"{store._prefix}plain/{name[:2]}/{name}", Body=b"evil", ContentType="text/html"
    )
    await store.aclose()
    async with httpx.AsyncClient() as http:
        served = await http.get(two + path)
    assert (served.status_code, served.content) == (200, FILM)


async def test_the_encore_client_follows(addresses: tuple[str, str]) -> None:
    """`content` gives the same bytes whichever server they come from, and S3 hears no header of the caller's."""
    one, two = addresses
    job_id = (await completed(one)).split("/")[3]
    async with httpx.AsyncClient() as http:
        assert (await http.get(f"{two}/v1/videos/{job_id}/content")).status_code == 307
    async with AsyncEncore(two, headers={"Authorization": "Bearer secret"}) as encore:
        assert await encore.content(job_id) == FILM


async def test_a_browser_plays_what_it_is_sent_to(addresses: tuple[str, str], tmp_path: Path) -> None:
    """Chromium follows the redirect of a video element to the other origin and plays the file to its end."""
    from tests.serve_app.media import test_playback as playback

    one, two = addresses
    path = await completed(one)
    chromium = playback.shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed (Debian package chromium)")
    # Pixels of another origin cannot be read back, so the page tells size and time only.
    page = playback.PAGE.replace(b'"/video.mp4"', f'"{two + path}"'.encode())
    page = page.replace(b"[pixel(16, 32), pixel(112, 32)]", b"null")
    seen = await asyncio.to_thread(playback.seen_by, chromium, tmp_path, b"", page)
    assert "error" not in seen, seen
    assert (seen["width"], seen["height"]) == (64, 64)
    assert seen["position"] == pytest.approx(1.0, abs=0.001)


@pytest.mark.parametrize("what", ["deleted", "replaced", "invalidated"])
async def test_a_copy_outlives_nothing(rig: S3Rig, addresses: tuple[str, str], what: str) -> None:
    """A plain copy whose frame is gone, is another key's, or is covered by an invalidation is not sent to."""
    await completed(addresses[0])
    store, key = rig.store(), rig.renderer.asked[0]
    cache = TieredCache("video", secret=SECRET, l3=store)
    assert await cache.location(key) is not None
    [name] = [each async for each in store.names()]
    client = await store._connected()
    frame = {"Bucket": store._bucket, "Key": f"{store._prefix}{name[:2]}/{name}"}
    if what == "deleted":
        await client.delete_object(**frame)
    elif what == "replaced":
        await client.put_object(**frame, Body=framed(Entry.of("another key", FILM), secret=SECRET))
    else:
        cache.rules.learn((Rule("everything", EVERYTHING, 2**60, 2**60),))
    assert await cache.location(key) is None
    await cache.aclose()
