"""What is computed here is what diffusers' WanPipeline computes from the same folder, seed and prompt.

Float32 on a CPU, random weights of the real classes: latents at most 1e-4 apart (of values up to 8), before they are
rounded to half precision for the decoder; frames of the same latents equal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from serve_app.core import VideoSpec
from serve_app.engine.denoising import Start, Trajectory, advance
from serve_app.engine.engine import StepEngine
from serve_app.engine.job import Checkpoints
from serve_app.model.wan.wan import WanFamily
from serve_app.telemetry import Telemetry
from tests.serve_app.model.wan.reference import Reference, spec
from tests.serve_app.model.wan.tiny_checkpoint import EULER, T2V_1_3B, T2V_A14B, TI2V_5B, Kind

Families = Callable[[Kind], WanFamily]
Pipelines = Callable[[Kind], Reference]

CLOSE = {"atol": 1e-4, "rtol": 0.0}
MIXED = (
    spec(seed=1, num_inference_steps=4, guidance_scale=5.0),
    spec(seed=2, num_inference_steps=20, guidance_scale=1.0, prompt="two dogs bake a cake in Paris &amp; Rome"),
    spec(seed=3, num_inference_steps=7, guidance_scale=7.5, prompt="一只猫在草地上走", negative_prompt=""),
)

each_kind = pytest.mark.parametrize("kind", [TI2V_5B, T2V_1_3B, T2V_A14B, EULER], ids=["5b", "1.3b", "a14b", "euler"])


def rendered(family: WanFamily, specs: Sequence[VideoSpec]) -> list[torch.Tensor]:
    """Denoise jobs that begin together in shared passes; the final float32 latents of each."""
    denoiser, encoder = family.load_denoiser("cpu"), family.load_text_encoder("cpu")
    jobs = {
        i: Trajectory.of(denoiser, each, *encoder.encode([each.prompt, each.negative_prompt]))
        for i, each in enumerate(specs)
    }
    done = {}
    while jobs:
        for i, job in zip(list(jobs), advance(denoiser, list(jobs.values())), strict=True):
            jobs[i] = job
            if job.step == job.sampler.num_inference_steps:
                done[i] = jobs.pop(i).latents
    return [done[i] for i in range(len(specs))]


@each_kind
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("steps", [4, 20])
def test_alone(wan: Families, pipeline: Pipelines, kind: Kind, steps: int, guidance_scale: float) -> None:
    """A job that has the passes for itself: three seeds, with and without guidance, few and many steps."""
    for seed in (0, 7, 123_456_789_012):
        asked = spec(seed=seed, num_inference_steps=steps, guidance_scale=guidance_scale)
        (latents,) = rendered(wan(kind), [asked])
        torch.testing.assert_close(latents, pipeline(kind).latents(asked)[-1], **CLOSE)


@each_kind
def test_in_a_mixed_batch(wan: Families, pipeline: Pipelines, kind: Kind) -> None:
    """Three jobs of different seeds, prompts, step counts and guidance share passes: each is the pipeline's."""
    for latents, asked in zip(rendered(wan(kind), MIXED), MIXED, strict=True):
        torch.testing.assert_close(latents, pipeline(kind).latents(asked)[-1], **CLOSE)


@each_kind
async def test_through_the_step_engine(wan: Families, pipeline: Pipelines, kind: Kind) -> None:
    """The engine's own batching changes nothing: the last checkpoint, the rounded latents and the frames agree."""
    family = wan(kind)
    encoder = family.load_text_encoder("cpu")
    engine = StepEngine(
        family.load_denoiser("cpu"), family.load_decoder("cpu"),
        max_batch_size=3, telemetry=Telemetry(lambda event: None), torch_threads=1,
    )  # fmt: skip
    await engine.start()
    points: dict[int, Start] = {}

    async def render(number: int, asked: VideoSpec) -> tuple[torch.Tensor, np.ndarray]:
        last = frozenset({asked.num_inference_steps - 1})
        rendering = await engine.render(
            str(number), asked, *encoder.encode([asked.prompt, asked.negative_prompt]), lambda step, total: None,
            checkpoints=Checkpoints(last, lambda point: points.__setitem__(number, point)),
        )  # fmt: skip
        return rendering.latents, rendering.frames

    try:
        results = await asyncio.gather(*(render(number, asked) for number, asked in enumerate(MIXED)))
    finally:
        await engine.stop()
    assert engine.stats()["passes"] < sum(asked.num_inference_steps for asked in MIXED)
    for number, (asked, (latents, frames)) in enumerate(zip(MIXED, results, strict=True)):
        *_, before, final = pipeline(kind).latents(asked)
        torch.testing.assert_close(points[number].latents, before, **CLOSE)
        torch.testing.assert_close(latents.float(), final, atol=1e-4, rtol=2**-10)  # half precision has 11 bits
        assert np.array_equal(frames, pipeline(kind).frames(latents))
        apart = np.abs(frames.astype(int) - pipeline(kind).frames(final.half()))
        assert apart.max() <= 2
        assert apart.mean() < 0.02


def test_the_same_job_gives_the_same_bits_after_a_checkpoint(wan: Families) -> None:
    """Going on from a checkpoint ends where the uninterrupted job ends: the sampler's past travels with it."""
    family, asked = wan(TI2V_5B), spec(num_inference_steps=6)
    denoiser = family.load_denoiser("cpu")
    embeds = family.load_text_encoder("cpu").encode([asked.prompt, asked.negative_prompt])
    job = Trajectory.of(denoiser, asked, *embeds)
    points = []
    while job.step < 6:
        (job,) = advance(denoiser, [job])
        points.append(job.checkpoint())
    for point in points[:-1]:
        resumed = Trajectory.of(denoiser, asked, *embeds, start=point)
        while resumed.step < 6:
            (resumed,) = advance(denoiser, [resumed])
        assert torch.equal(resumed.final_latents(), job.final_latents())
        assert torch.equal(resumed.checkpoint().latents, job.checkpoint().latents)
