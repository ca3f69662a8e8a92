"""Thumbnails of stored videos: made once, in a thread, kept within bounds, forgotten with their video."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from serve_app.core import Entry
from serve_app.errors import Busy, NotFound, RenderCancelled, RenderFailed
from serve_app.media import Variant, encode_mp4, spritesheet, thumbnail
from serve_app.service import thumbnails as module
from serve_app.service.thumbnails import Thumbnails
from tests.serve_app.service.rig import Rig, ask, ended

FILM = encode_mp4(np.random.default_rng(1).integers(0, 255, (5, 32, 32, 3)).astype(np.uint8), fps=4)
VIDEO = Entry.of("a" * 64, FILM)


class Maker:
    """A stand-in for `thumbnail` that counts, tells its thread, and waits for `go`."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.go = threading.Event()

    def __call__(self, video: bytes) -> bytes:
        self.made.append(threading.current_thread().name)
        assert self.go.wait(10)
        return b"picture of " + video[:8]


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Maker]:
    made = Maker()
    monkeypatch.setitem(module._MAKERS, Variant.THUMBNAIL, made)
    yield made
    made.go.set()


@pytest.fixture
def pictures() -> Iterator[Thumbnails]:
    made = Thumbnails()
    yield made
    made.close()


async def test_each_variant_is_what_media_makes_of_the_file(pictures: Thumbnails) -> None:
    """The video is itself; a picture is an entry of its own under the video's key, with the digest of its bytes."""
    assert await pictures.get(VIDEO, Variant.VIDEO) is VIDEO
    for variant, made in ((Variant.THUMBNAIL, thumbnail(FILM)), (Variant.SPRITESHEET, spritesheet(FILM))):
        picture = await pictures.get(VIDEO, variant)
        assert (picture.key, picture.data, picture.digest) == (VIDEO.key, made, Entry.of("", made).digest)
        assert await pictures.get(VIDEO, variant) is picture
    assert (pictures.stats()["entries"], pictures.stats()["pending"]) == (2, 0)


async def test_made_once_for_all_who_ask_off_the_event_loop(pictures: Thumbnails, maker: Maker) -> None:
    """Whoever asks meanwhile waits for the same picture; the loop is free, and who hangs up takes it from nobody."""
    waiters = [asyncio.create_task(pictures.get(VIDEO, Variant.THUMBNAIL)) for _ in range(5)]
    while not maker.made:  # noqa: ASYNC110 -- the loop runs while the thread waits
        await asyncio.sleep(0.002)
    waiters.pop(0).cancel()
    maker.go.set()
    answers = await asyncio.gather(*waiters)
    assert all(answer is answers[0] for answer in answers)
    assert len(maker.made) == 1
    assert maker.made[0].startswith("pictures")


async def test_other_bytes_under_the_key_are_another_picture(pictures: Thumbnails, maker: Maker) -> None:
    """A video that was rendered anew, with other bytes, never shows the picture of the earlier one."""
    maker.go.set()
    first = await pictures.get(VIDEO, Variant.THUMBNAIL)
    other = await pictures.get(Entry.of(VIDEO.key, b"another film"), Variant.THUMBNAIL)
    assert (first.data, other.data) == (b"picture of " + FILM[:8], b"picture of another ")


async def test_forgotten_with_its_video(pictures: Thumbnails, maker: Maker) -> None:
    """Forgetting a key drops its pictures, also one that is being made; others stay."""
    kept = Entry.of("b" * 64, b"the other film")
    maker.go.set()
    await pictures.get(kept, Variant.THUMBNAIL)
    await pictures.get(VIDEO, Variant.THUMBNAIL)
    pictures.forget(VIDEO.key)
    maker.go.clear()
    under_way = asyncio.create_task(pictures.get(VIDEO, Variant.THUMBNAIL))
    while len(maker.made) < 3:  # noqa: ASYNC110
        await asyncio.sleep(0.002)
    pictures.forget(VIDEO.key)
    maker.go.set()
    assert (await under_way).data.startswith(b"picture of")
    assert pictures.stats()["entries"] == 1
    await pictures.get(kept, Variant.THUMBNAIL)
    assert len(maker.made) == 3


async def test_bounded_in_bytes(maker: Maker) -> None:
    """Beyond the bound the picture that was not asked for longest is dropped and made again when it is asked for."""
    maker.go.set()
    small = Thumbnails(max_bytes=8_000)  # each is charged about 1 kB
    for number in range(20):
        await small.get(Entry.of(f"{number:064}", b"film"), Variant.THUMBNAIL)
    stats = small.stats()
    assert 0 < stats["bytes"] <= 8_000
    assert stats["entries"] + stats["evicted"] == 20
    await small.get(Entry.of(f"{0:064}", b"film"), Variant.THUMBNAIL)
    await small.get(Entry.of(f"{19:064}", b"film"), Variant.THUMBNAIL)
    assert len(maker.made) == 21
    small.close()


async def test_too_many_at_once(pictures: Thumbnails, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """When too many wait, one more is Busy with Retry-After; joining one that is under way is not."""
    monkeypatch.setattr(module, "MAX_PENDING", 1)
    waiter = asyncio.create_task(pictures.get(VIDEO, Variant.THUMBNAIL))
    await asyncio.sleep(0.01)
    with pytest.raises(Busy) as busy:
        await pictures.get(VIDEO, Variant.SPRITESHEET)
    assert busy.value.retry_after == 1
    joiner = asyncio.create_task(pictures.get(VIDEO, Variant.THUMBNAIL))
    await asyncio.sleep(0)
    maker.go.set()
    assert await joiner is await waiter


async def test_an_unreadable_video_is_told_and_not_kept(pictures: Thumbnails) -> None:
    """Bytes that are no video are a RenderFailed, every time."""
    for _ in range(2):
        with pytest.raises(RenderFailed, match="could not be read"):
            await pictures.get(Entry.of("c" * 64, b"no film"), Variant.THUMBNAIL)
    assert pictures.stats()["entries"] == 0


async def test_closing_tells_who_waits(pictures: Thumbnails, maker: Maker) -> None:
    """What was not begun when the router closes is cancelled; nobody waits for ever."""
    waiters = [
        asyncio.create_task(pictures.get(Entry.of(f"{number:064}", b"film"), Variant.THUMBNAIL))
        for number in range(module.THREADS + 1)
    ]
    while len(maker.made) < module.THREADS:  # noqa: ASYNC110
        await asyncio.sleep(0.002)
    pictures.close()
    maker.go.set()
    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(result) for result in results] == [Entry] * module.THREADS + [RenderCancelled]


async def test_through_the_service(rig: Rig) -> None:
    """A completed job has its pictures, from any router; once the video is invalidated they are gone with it."""
    rig.renderer.data = FILM
    service = rig.service()
    job = await ended(service, await service.jobs.submit(ask()))
    picture, same, outcome = await service.jobs.content(job.id, Variant.THUMBNAIL)
    assert (picture.data, same.id, outcome) == (thumbnail(FILM), job.id, "l1")
    elsewhere = rig.service()
    hit = await ended(elsewhere, await elsewhere.jobs.submit(ask()))
    assert (await elsewhere.jobs.content(hit.id, Variant.SPRITESHEET))[0].data == spritesheet(FILM)
    assert len(rig.renderer.asked) == 1
    await elsewhere.invalidate(job.keys.video)
    for router, job_id in ((service, job.id), (elsewhere, hit.id)):
        assert router.jobs._thumbnails.stats()["entries"] == 0
        with pytest.raises(NotFound, match="no longer stored"):
            await router.jobs.content(job_id, Variant.THUMBNAIL)


async def test_no_picture_before_the_video(rig: Rig) -> None:
    """A job that is not completed has no picture, and says so as it does for the video."""
    rig.renderer.hold()
    service = rig.service()
    job = await service.jobs.submit(ask())
    with pytest.raises(NotFound, match="not ready"):
        await service.jobs.content(job.id, Variant.THUMBNAIL)
    rig.renderer.allow()
    await ended(service, job)
