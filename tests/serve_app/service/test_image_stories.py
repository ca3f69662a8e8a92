"""Videos from images over whole routers: what is one video, what travels, what becomes of a dead router's job."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.cache.key import image_key
from serve_app.core import JobStatus, Outcome
from serve_app.errors import Busy, InvalidImage, KeyReused, NotFound, RenderFailed, TooLarge, Unavailable
from serve_app.media import probe
from serve_app.media.first_frame import pixels_of
from serve_app.model.model import Family
from serve_app.service.jobs.idempotency import RequestAttempt
from serve_app.service.jobs.input_images import InputImageStore, MemoryInputImages
from serve_app.service.jobs.store import ORPHAN_SECONDS
from serve_app.service.service import VideoService
from serve_app.settings import Settings
from serve_app.wiring.model import open_planner
from tests.conftest import ValkeyServer
from tests.serve_app.service.image_world import SMALL, family, local, picture, settings
from tests.serve_app.service.local_renderer import LocalRenderer
from tests.serve_app.service.rig import Rig, ask, ended, reached, until

__all__ = ["family", "local", "settings"]  # fixtures


def asked(image: bytes | None, **fields: Any) -> Any:
    given = {} if image is None else {"input_reference": image}
    return ask("a cat in Paris", **(SMALL | given | fields))


async def rounds(*services: VideoService) -> None:
    for service in services:
        await service.jobs._tracker._sweeper.round()


async def test_an_image_in_an_mp4_out(rig: Rig, local: LocalRenderer, family: Family) -> None:
    """Through the real line: the video has the asked form; other files of the picture hit it, other pictures do not."""
    service = rig.service(renderer=local, family=family)
    first = await service.generate(asked(picture(1)))
    info = probe(first.entry.data)
    assert (info.width, info.height, info.num_frames) == (96, 64, 9)
    assert first.outcome is Outcome.RENDERED
    for copy in (picture(1, "WEBP", lossless=True), picture(1, compress_level=0)):
        again = await service.generate(asked(copy))
        assert (again.outcome, again.entry.data) == (Outcome.L1, first.entry.data)
    videos = [first] + [await service.generate(asked(image)) for image in (picture(2), None)]
    assert [each.outcome for each in videos] == [Outcome.RENDERED] * 3
    assert len({each.keys.latents for each in videos}) == len({each.entry.digest for each in videos}) == 3
    assert len({each.keys.prompt for each in videos}) == 1
    await local.latents.settled()
    assert (await service.generate(asked(picture(1), fps=12))).outcome is Outcome.LATENTS


async def test_jobs_from_images_and_from_text_together(rig: Rig, local: LocalRenderer, family: Family) -> None:
    """Several jobs of both sorts at once share passes and are each what they are alone."""
    service = rig.service(renderer=local, family=family)
    requests = [asked(picture(number) if number % 2 else None, seed=number) for number in range(4)]
    jobs = [await ended(service, job) for job in [await service.jobs.submit(each) for each in requests]]
    assert [job.status for job in jobs] == ["completed"] * 4
    assert local.engine.stats()["passes"] < 4 * SMALL["num_inference_steps"]


async def test_what_travels_is_the_first_frame(rig: Rig, family: Family) -> None:
    """Whoever renders gets the fitted pixels, verified by the spec's digest, in fewer bytes than they have raw."""
    service = rig.service(family=family)
    await service.generate(asked(picture(1, "JPEG", size=(400, 300))))
    (request,) = rig.renderer.requests
    assert request.image is not None
    assert len(request.image) < 96 * 64 * 3
    pixels = pixels_of(request.image, request.spec.input_reference, 96, 64)
    assert (pixels.shape, pixels.dtype) == ((64, 96, 3), np.uint8)
    assert "PNG" not in repr(request)


def test_the_plan_says_what_the_image_is(settings: Settings) -> None:
    """Keys and spec of the explanation have the image's digest; from text they are those of a card without images."""
    planner = open_planner(settings)
    with_image, from_text = planner.plan(asked(picture(1))), planner.plan(asked(None))
    assert with_image.explained()["spec"]["input_reference"] == with_image.spec.input_reference != ""
    assert from_text.spec.input_reference == ""
    assert with_image.keys.prompt == from_text.keys.prompt
    assert with_image.keys.latents != from_text.keys.latents
    strict = open_planner(settings.model_copy(update={"max_image_bytes": 100}))
    with pytest.raises(TooLarge, match="at most 100"):
        strict.plan(asked(picture(1)))
    small = open_planner(settings.model_copy(update={"max_image_pixels": 6_000}))
    with pytest.raises(TooLarge, match="96x64 pixels; at most 6,000"):
        small.plan(asked(picture(1)))


async def test_nothing_is_rendered_of_what_is_no_image(rig: Rig, family: Family) -> None:
    """A file that is none is refused by both doors, and leaves nothing behind."""
    service = rig.service(family=family, images=(images := MemoryInputImages()))
    for door in (service.generate, service.jobs.submit, service.explain):
        with pytest.raises(InvalidImage):
            await door(asked(b"no picture"))
    assert rig.renderer.asked == []
    assert len(images) == 0


@pytest.mark.parametrize("fate", ["completed", "failed", "deleted"])
async def test_an_image_is_kept_no_longer_than_its_job_needs_it(rig: Rig, family: Family, fate: str) -> None:
    """It is there while the job is not finished, and gone when it was completed, has failed or was deleted."""
    rig.renderer.hold()
    service = rig.service(family=family, images=(images := MemoryInputImages()))
    job = await service.jobs.submit(asked(picture(1)))
    await reached(service, job, JobStatus.IN_PROGRESS)
    assert len(images) == 1
    if fate == "deleted":
        await service.jobs.delete(job.id)
    else:
        rig.renderer.failure = RenderFailed("no luck") if fate == "failed" else None
        rig.renderer.allow()
        assert (await ended(service, job)).status == fate
    await until(lambda: len(images) == 0)
    await service.jobs.submit(asked(picture(1)))  # of a completed one this is a hit, which keeps nothing
    assert len(images) == (0 if fate == "completed" else 1)


async def test_tries_of_one_request(rig: Rig, family: Family) -> None:
    """The same image under one key is the first job, another one is KeyReused; neither leaves an image behind."""
    rig.renderer.hold()
    service = rig.service(family=family, images=(images := MemoryInputImages()))
    first = await service.jobs.submit(asked(picture(1)), RequestAttempt("order"))
    assert (await service.jobs.submit(asked(picture(1)), RequestAttempt("order"))).id == first.id
    for other in (picture(2), None):
        with pytest.raises(KeyReused):
            await service.jobs.submit(asked(other), RequestAttempt("order"))
    tries = [service.jobs.submit(asked(picture(3)), RequestAttempt("many")) for _ in range(5)]
    assert len({job.id for job in await asyncio.gather(*tries)}) == 1
    await service.jobs._images.aclose()
    assert len(images) == 2
    rig.renderer.allow()
    await ended(service, first)


class Slow(MemoryInputImages):
    """Images that are kept only when `let_go` says so; `entered` counts those that came."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = asyncio.Event()
        self.entered = 0

    async def keep(self, key: str, job_id: str, data: bytes, seconds: float) -> None:
        self.entered += 1
        await self.let_go.wait()
        await super().keep(key, job_id, data, seconds)


@pytest.mark.parametrize("is_accepted", [True, False])
async def test_a_client_that_hangs_up_leaves_a_job_or_no_image(rig: Rig, family: Family, is_accepted: bool) -> None:
    """While its image is written the client goes: the job is accepted and rendered all the same, or nothing is kept."""
    rig.renderer.hold()
    jobs = rig.jobs()
    service = rig.service(family=family, images=(images := Slow()), jobs=jobs)
    asking = asyncio.create_task(service.jobs.submit(asked(picture(1))))
    await until(lambda: images.entered == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    if not is_accepted:
        jobs.accept = refuse  # type: ignore[method-assign]
    images.let_go.set()
    await service.jobs._images.settled()
    await service.jobs._images.aclose()
    assert len(images) == len(service.jobs._tracker._followed) == int(is_accepted)


async def refuse(job: Any, mark: Any) -> str:
    raise Unavailable("away")


async def test_a_place_that_was_taken_meanwhile_is_gone(rig: Rig, family: Family) -> None:
    """Jobs whose images are written at the same time share what places there are; who gets none leaves no image."""
    rig.renderer.hold()
    service = rig.service(family=family, images=(images := Slow()), max_queued=2)
    tries = [asyncio.create_task(service.jobs.submit(asked(picture(number)))) for number in range(5)]
    await until(lambda: images.entered == 5)
    images.let_go.set()
    ends = await asyncio.gather(*tries, return_exceptions=True)
    assert [type(end) for end in ends if isinstance(end, BaseException)] == [Busy] * 3
    await service.jobs._images.aclose()
    assert len(images) == len(service._loader) == 2


async def test_whoever_joins_brings_the_image(shared_rig: Rig, family: Family) -> None:
    """An adopted job's flight has no image of its own: if its store lost it, that of a request that joined is used."""
    shared_rig.renderer.hold()
    dead = shared_rig.service(family=family)
    job = await dead.jobs.submit(asked(picture(1)))
    await reached(dead, job, JobStatus.IN_PROGRESS)
    await dead.aclose()
    await until(lambda: len(dead._loader) == 0)
    await shared_rig.images().release(image_key(job.spec), job.id)
    shared_rig.clock.now += ORPHAN_SECONDS
    fresh = shared_rig.service(family=family)
    plan = fresh.planner.plan(asked(picture(1)))
    await fresh.jobs._tracker._adopt()
    flight, led = fresh._loader.join_or_lead(
        plan.spec, plan.keys, plan.urgency, image=plan.image
    )  # before it is rendered
    assert not led
    shared_rig.renderer.allow()
    assert (await flight.wait()).outcome is Outcome.RENDERED
    assert (await ended(fresh, job)).status == "completed"
    assert shared_rig.renderer.requests[-1].image == plan.image
    assert len(fresh._loader) == 0  # and the flight holds the image no longer


async def test_an_orphan_with_an_image_is_rendered(shared_rig: Rig, family: Family) -> None:
    """A router that takes over a dead one's job has its image, and lets it go when the video is there."""
    shared_rig.renderer.hold()
    dead = shared_rig.service(family=family)
    job = await dead.jobs.submit(asked(picture(1, size=(300, 300))))
    await reached(dead, job, JobStatus.IN_PROGRESS)
    await dead.aclose()
    await until(lambda: len(dead._loader) == 0)  # in this process the dead one's render would go on for a while

    shared_rig.clock.now += ORPHAN_SECONDS
    images = shared_rig.images()
    assert await images.find(image_key(job.spec)) is not None
    fresh = shared_rig.service(family=family)
    shared_rig.renderer.allow()
    await rounds(fresh)
    done = await ended(fresh, job)
    assert (done.status, done.outcome) == ("completed", Outcome.RENDERED)
    assert [request.image for request in shared_rig.renderer.requests[1:]] == [shared_rig.renderer.requests[0].image]
    await fresh.jobs._images.aclose()
    assert await images.find(image_key(job.spec)) is None


async def test_everything_dies(tmp_path: Path, start_valkey: Callable[..., ValkeyServer], family: Family) -> None:
    """Valkey and the router are killed; after the restart the job is rendered from its image without being asked."""
    server = start_valkey(persistent=True)
    rig = Rig(tmp_path / "l3", server.url)
    rig.renderer.hold()
    dead = rig.service(family=family)
    job = await dead.jobs.submit(asked(picture(1)))
    await reached(dead, job, JobStatus.IN_PROGRESS)
    server.kill()
    dead.jobs._tracker.forget(job.id)  # a killed process tells nobody anything
    await until(lambda: len(dead._loader) == 0)
    rig.renderer.requests.clear()

    server.restart()
    rig.clock.now += ORPHAN_SECONDS
    rig.renderer.allow()
    fresh = rig.service(family=family)
    await rounds(fresh)
    assert (await ended(fresh, job)).status == "completed"
    (request,) = rig.renderer.requests
    assert request.image is not None
    assert pixels_of(request.image, job.spec.input_reference, 96, 64).shape == (64, 96, 3)
    await rig.aclose()


async def test_an_image_that_is_lost_is_told(shared_rig: Rig, family: Family) -> None:
    """Where a store lost the image but not the job, the job fails and says what to do; nothing else is rendered."""
    shared_rig.renderer.hold()
    dead = shared_rig.service(family=family)
    job = await dead.jobs.submit(asked(picture(1)))
    await reached(dead, job, JobStatus.IN_PROGRESS)
    await dead.aclose()
    await until(lambda: len(dead._loader) == 0)
    images: InputImageStore = shared_rig.images()
    await images.release(image_key(job.spec), job.id)
    shared_rig.clock.now += ORPHAN_SECONDS
    fresh = shared_rig.service(family=family)
    await rounds(fresh)
    failed = await ended(fresh, job)
    assert (failed.status, failed.error_code) == ("failed", "render_failed")
    assert "send it again" in (failed.error_message or "")
    assert len(shared_rig.renderer.asked) == 1


async def test_damage_on_the_way_fails_the_render(rig: Rig, local: LocalRenderer, family: Family) -> None:
    """Bytes that are not the picture which the spec names make no video."""
    service = rig.service(renderer=local, family=family)
    plan = service.planner.plan(asked(picture(1)))
    flight, _ = service._loader.join_or_lead(plan.spec, plan.keys, plan.urgency, image=picture(2))
    with pytest.raises(RenderFailed, match="did not arrive whole"):
        await flight.wait()
    with pytest.raises(NotFound):
        await service.jobs.content(plan.keys.video)
