"""The render itself, with the real demo model in one process: keys to pixels, and who may end it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from serve_app.core import (
    Entry,
    Finished,
    JobStatus,
    Outcome,
    Progress,
    RenderRequest,
    Rule,
    Started,
)
from serve_app.errors import FingerprintMismatch, RenderCancelled
from serve_app.media import probe
from serve_app.model.families import load_family
from serve_app.service.plan import Planner
from tests.serve_app.service.local_renderer import LocalRenderer
from tests.serve_app.service.rig import SMALLEST, TINY, Rig, ask, ended, reached, until

WIDTH, HEIGHT = map(int, SMALLEST.split("x"))
FAMILY = load_family("native/demo")


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any, Any]:
    return FAMILY.load_text_encoder("cpu"), FAMILY.load_denoiser("cpu"), FAMILY.load_decoder("cpu")


@pytest.fixture
async def local(rig: Rig, parts: tuple[Any, Any, Any]) -> AsyncIterator[LocalRenderer]:
    made = LocalRenderer(rig, parts, FAMILY.card.model_fingerprint)
    await made.engine.start()
    yield made
    await made.engine.stop()


def a_request(**fields: Any) -> RenderRequest:
    plan = Planner(FAMILY, "encoder", max_prompt_chars=100).plan(ask(**(TINY | fields)))
    return RenderRequest(plan.spec, plan.keys, FAMILY.card.model_fingerprint)


async def test_a_prompt_in_an_mp4_out(rig: Rig, local: LocalRenderer) -> None:
    """Through the real line a prompt becomes an MP4 of the asked form; another seed reuses the embedding."""
    service = rig.service(renderer=local)
    first = await service.generate(ask(**TINY))
    info = probe(first.entry.data)
    assert (info.width, info.height, info.num_frames, info.codec) == (WIDTH, HEIGHT, 8, "h264")
    assert (first.outcome, first.embedding, first.stored) == (Outcome.RENDERED, "miss", True)
    other = await service.generate(ask(seed=7, **TINY))
    assert (other.outcome, other.embedding) == (Outcome.RENDERED, "hit")
    assert other.entry.data != first.entry.data
    assert (await rig.service(renderer=local).generate(ask(**TINY))).entry == first.entry


async def test_a_render_repeats_itself(rig: Rig, local: LocalRenderer) -> None:
    """After video and latents are invalidated everywhere, the same request on this machine gives the same bytes."""
    service = rig.service(renderer=local)
    first = await service.generate(ask(**TINY))
    await service.invalidate(first.keys.video)
    again = await service.generate(ask(**TINY))
    assert again.outcome is Outcome.RENDERED
    assert again.entry.digest == first.entry.digest


async def test_another_frame_rate_or_quality_is_no_render(rig: Rig, local: LocalRenderer) -> None:
    """The latents of the first video give the others: outcome `latents`, no step, and the pixels of a full render."""
    service = rig.service(renderer=local)
    await service.generate(ask(**TINY))
    await local.latents.settled()
    steps = local.engine.stats()["steps_done"]
    slow = await service.generate(ask(**TINY, fps=8))
    small = await service.generate(ask(**TINY, quality=40))
    assert (slow.outcome, small.outcome) == (Outcome.LATENTS, Outcome.LATENTS)
    assert probe(slow.entry.data).fps == 8
    assert small.entry.size < slow.entry.size
    assert local.engine.stats()["steps_done"] == steps
    await service.invalidate(slow.keys.video)
    fresh = await service.generate(ask(**TINY, fps=8))
    assert (fresh.outcome, fresh.entry.data) == (Outcome.RENDERED, slow.entry.data)


async def test_latents_that_are_no_use_cost_a_render_and_no_more(rig: Rig, local: LocalRenderer) -> None:
    """Latents of another shape, and bytes that are none at all, are dropped; the video is rendered and kept anew."""
    request = a_request()
    cache = rig.latents()
    for data in (safetensors.torch.save({"latents": torch.zeros(1, 2, 3, 4, dtype=torch.float16)}), b"nothing"):
        await cache.delete(request.keys.latents)
        await cache.put(Entry.of(request.keys.latents, data))
        last = [event async for event in local.render(request)][-1]
        assert isinstance(last, Finished)
        assert last.outcome is Outcome.RENDERED
        await local.latents.settled()
        kept = await local.latents.find(request.keys.latents)
        assert kept is not None
        assert kept.shape == (8, 8, 8, 8)  # of the one size that the demo makes


async def test_a_job_over_the_real_line(rig: Rig, local: LocalRenderer) -> None:
    """A job goes to completed with its embedding told, and its content is the MP4."""
    service = rig.service(renderer=local)
    job = await ended(service, await service.jobs.submit(ask(**TINY)))
    assert (job.status, job.embedding) == ("completed", "miss")
    assert probe((await service.jobs.content(job.id))[0].data).num_frames == 8


async def test_events_in_order(local: LocalRenderer) -> None:
    """The stream is Started, rising Progress up to the last step, Finished; a slow reader misses only Progress."""
    events = []
    async for event in local.render(a_request(num_inference_steps=4)):
        events.append(event)
        await asyncio.sleep(0.05)
    assert events[0] == Started("miss")
    assert isinstance(events[-1], Finished)
    steps = [event.step for event in events if isinstance(event, Progress)]
    assert steps == sorted(set(steps))
    assert steps[-1] == 4


async def test_other_weights_are_refused(local: LocalRenderer) -> None:
    """A request keyed for other weights is refused before anything runs, with a hint to come back."""
    request = a_request()
    wrong = RenderRequest(request.spec, request.keys, "of last week")
    with pytest.raises(FingerprintMismatch) as refused:
        async for _ in local.render(wrong):
            pass
    assert refused.value.retry_after is not None
    assert local.engine.stats()["steps_done"] == 0


async def test_a_closed_stream_does_not_stop_the_render(local: LocalRenderer) -> None:
    """A router that stops reading (or dies) leaves the render to finish and store; a second reader joins it."""
    request = a_request(num_inference_steps=6)
    stream = local.render(request)
    assert isinstance(await anext(stream), Started)
    await stream.aclose()
    last = None
    async for event in local.render(request):
        last = event
    assert isinstance(last, Finished)
    assert local.engine.stats()["steps_done"] == 6, "one render, not two"
    assert await local.videos.get(request.keys.video) is not None


async def test_cancel_ends_it_and_it_may_begin_again(local: LocalRenderer) -> None:
    """`cancel` ends the render for its readers; the same key can be rendered again at once, without a conflict."""
    request = a_request(num_inference_steps=50)
    stream = local.render(request)
    await anext(stream)
    await anext(stream)
    assert local.worker.cancel(request.keys.video)
    again = local.render(request)
    assert isinstance(await anext(again), Started)
    with pytest.raises(RenderCancelled):
        async for _ in stream:
            pass
    assert local.worker.cancel(request.keys.video)
    with pytest.raises(RenderCancelled):
        async for _ in again:
            pass
    assert not local.worker.cancel(request.keys.video)
    assert local.engine.stats()["running"] == 0


async def test_without_guidance_the_negative_prompt_is_not_needed(local: LocalRenderer) -> None:
    """guidance_scale 1 renders with the prompt alone."""
    events = [event async for event in local.render(a_request(guidance_scale=1))]
    assert isinstance(events[-1], Finished)


async def test_deleting_the_only_job_frees_the_engine(rig: Rig, local: LocalRenderer, tmp_path: Path) -> None:
    """DELETE of the only waiter ends the render in the engine within a step; nothing is stored."""
    service = rig.service(renderer=local, linger_seconds=60)
    job = await service.jobs.submit(ask(**(TINY | {"num_inference_steps": 50})))
    await reached(service, job, JobStatus.IN_PROGRESS, 1)
    await service.jobs.delete(job.id)
    await until(lambda: not local.engine.stats()["running"])
    assert local.engine.stats()["steps_done"] < 50
    assert await local.videos.get(job.keys.video) is None


def ruled(request: RenderRequest, at: int, label: str = "l") -> RenderRequest:
    """The same request by somebody who knows that everything with the label was invalidated at `at`."""
    rules = (Rule("prompt" if label == "l" else "tag", label, at, at),)
    return replace(request, begun_at=at, labels=("l",), rules=rules)


async def test_an_older_render_is_not_joined(local: LocalRenderer) -> None:
    """Who asks after an invalidation gets a render of their own; the one under way for others ends."""
    request = replace(a_request(num_inference_steps=50), begun_at=5, labels=("l",))
    older = asyncio.create_task(anext(aiter(local.render(request))))
    await older
    await until(lambda: local.engine.stats()["steps_done"] > 2)
    events = [event async for event in local.render(ruled(request, 9))]
    assert isinstance(events[-1], Finished)
    assert events[-1].entry.meta["begun_at"] == 9
    again = [event async for event in local.render(ruled(request, 9))]
    assert again[-1].entry == events[-1].entry  # what was begun since is joined, or adopted


@pytest.mark.parametrize("label", ["l", "only theirs"])
async def test_older_latents_bring_nothing_back(rig: Rig, local: LocalRenderer, label: str) -> None:
    """Latents begun before an invalidation of their video, or of a tag that only they have, cost a render anew.

    The new render's latents take their place and are used again.
    """
    request = replace(a_request(), begun_at=5, labels=("l", "only theirs"))
    outcomes = []
    for each in (request, request, ruled(request, 9, label), ruled(request, 9, label)):
        await local.videos.delete(request.keys.video)
        outcomes.append([event async for event in local.render(each)][-1].outcome)  # type: ignore[union-attr]
        await local.latents.settled()
    assert outcomes == [Outcome.RENDERED, Outcome.LATENTS] * 2


async def test_a_late_file_is_replaced_not_adopted(rig: Rig, local: LocalRenderer) -> None:
    """Bytes that a paused writer left under the key since before the invalidation make room for the new render's."""
    request = replace(a_request(), begun_at=9, labels=("l",))
    old = Entry.of(request.keys.video, b"old", {"begun_at": 5, "labels": ["l"]})
    await local.videos.put(old)
    adopted = [event async for event in local.render(request)][-1]
    assert adopted.entry.data == b"old"
    fresh = [event async for event in local.render(ruled(request, 9))][-1]
    assert fresh.entry.data != b"old"
    assert (await rig.cache().get(request.keys.video))[0] == fresh.entry
