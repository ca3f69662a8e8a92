"""A video from an image is what diffusers' WanImageToVideoPipeline makes of the same folder, seed, prompt and image.

Float32 on a CPU, random weights of a checkpoint with `expand_timesteps`: latents at most 1e-4 apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from serve_app.core import Picture, VideoSpec
from serve_app.engine.denoising import Start, Trajectory, advance
from serve_app.engine.engine import StepEngine
from serve_app.engine.job import Checkpoints
from serve_app.errors import RenderFailed
from serve_app.media.first_frame import digest_of
from serve_app.model.model import ImageEncoder
from serve_app.model.wan.wan import WanFamily
from serve_app.telemetry import Telemetry
from tests.serve_app.model.wan.reference import Reference, plain, spec
from tests.serve_app.model.wan.tiny_checkpoint import T2V_1_3B, T2V_A14B, TI2V_5B, Kind

Families = Callable[[Kind], WanFamily]
Pipelines = Callable[[Kind], Reference]
Asked = tuple[VideoSpec, Picture | None]

CLOSE = {"atol": 1e-4, "rtol": 0.0}


def picture(seed: int) -> Picture:
    """A picture with edges, a gradient and noise, of the small video's size."""
    drawn = np.random.default_rng(seed)
    pixels = np.linspace(0, 255, 96)[None, :, None] * np.ones((64, 96, 3)) * drawn.uniform(0, 1, 3)
    pixels[16:40, 20:60] = drawn.uniform(0, 255, 3)
    return (pixels + drawn.uniform(-20, 20, pixels.shape)).clip(0, 255).astype(np.uint8)


def asked(image: Picture | None, **fields: Any) -> Asked:
    return spec(input_reference="" if image is None else digest_of(image), **fields), image


MIXED = (
    asked(picture(1), seed=1, num_inference_steps=4, guidance_scale=5.0),
    asked(None, seed=2, num_inference_steps=9, guidance_scale=1.0, prompt="two dogs bake a cake"),
    asked(picture(2), seed=3, num_inference_steps=7, guidance_scale=1.0, prompt="一只猫在草地上走"),
    asked(None, seed=3, num_inference_steps=5, guidance_scale=7.5, negative_prompt=""),
)


def encoder_of(family: WanFamily) -> ImageEncoder:
    decoder = family.load_decoder("cpu")
    assert isinstance(decoder, ImageEncoder)
    return cast(ImageEncoder, decoder)


def begun(family: WanFamily, jobs: Sequence[Asked]) -> list[Trajectory]:
    """Return the jobs before their first step."""
    denoiser, text, images = family.load_denoiser("cpu"), family.load_text_encoder("cpu"), encoder_of(family)
    return [
        Trajectory.of(
            denoiser,
            each,
            *text.encode([each.prompt, each.negative_prompt]),
            first_frame=None if image is None else images.encode_image(image),
        )
        for each, image in jobs
    ]


def rendered(family: WanFamily, jobs: Sequence[Asked]) -> list[torch.Tensor]:
    """Denoise jobs that begin together in shared passes; the final float32 latents of each."""
    denoiser = family.load_denoiser("cpu")
    left, done = dict(enumerate(begun(family, jobs))), {}
    while left:
        for i, job in zip(list(left), advance(denoiser, list(left.values())), strict=True):
            left[i] = job
            if job.step == job.sampler.num_inference_steps:
                done[i] = left.pop(i).checkpoint().latents
    return [done[i] for i in range(len(jobs))]


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("steps", [4, 20])
def test_alone(wan: Families, image_pipeline: Reference, steps: int, guidance_scale: float) -> None:
    """A job that has the passes for itself: three seeds and images, with and without guidance, few and many steps."""
    for seed in (0, 7, 123_456_789_012):
        job = asked(picture(seed), seed=seed, num_inference_steps=steps, guidance_scale=guidance_scale)
        (latents,) = rendered(wan(TI2V_5B), [job])
        torch.testing.assert_close(latents, image_pipeline.latents(*job)[-1], **CLOSE)


def test_in_a_batch_with_videos_from_text(wan: Families, pipeline: Pipelines, image_pipeline: Reference) -> None:
    """Four jobs share passes, two from images and two from text alone: each is its own pipeline's."""
    for latents, job in zip(rendered(wan(TI2V_5B), MIXED), MIXED, strict=True):
        reference = pipeline(TI2V_5B) if job[1] is None else image_pipeline
        torch.testing.assert_close(latents, reference.latents(*job)[-1], **CLOSE)


def test_the_image_matters(wan: Families) -> None:
    """Another image, or none, gives another video throughout, and the first frame stays what was given."""
    family = wan(TI2V_5B)
    images = [picture(1), picture(2), None]
    one, other, none = rendered(family, [asked(image) for image in images])
    for different in (other, none):
        assert ((one - different).abs().flatten(2).mean(dim=(0, 2)) > 1e-3).all()
    assert torch.equal(one[:, :1], encoder_of(family).encode_image(picture(1)))


def test_the_pass_is_the_class_s_own_forward(wan: Families) -> None:
    """A timestep a latent frame gives what diffusers computes with one a token, for frames at any two levels."""
    denoiser: Any = wan(TI2V_5B).load_denoiser("cpu")
    latents = torch.randn((2, 8, 3, 4, 6), generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([[0.0, 900.0, 900.0], [500.0, 500.0, 500.0]])
    embeds = [torch.randn((length, 32), generator=torch.Generator().manual_seed(length)) for length in (3, 40)]
    found = denoiser.predict(latents, timesteps, [denoiser.prepare(each) for each in embeds])
    a_token = timesteps.repeat_interleave(2 * 3, dim=1)
    torch.testing.assert_close(found, plain(denoiser._nets[0], latents, a_token, embeds), atol=1e-5, rtol=0)


def test_the_same_bits_after_a_checkpoint(wan: Families) -> None:
    """Going on from a checkpoint of a video from an image ends where the uninterrupted job ends."""
    family, asking = wan(TI2V_5B), asked(picture(1), num_inference_steps=5)
    denoiser, (job,) = family.load_denoiser("cpu"), begun(family, [asking])
    first, points = job, []
    while job.step < 5:
        (job,) = advance(denoiser, [job])
        points.append(job.checkpoint())
    for point in points[:-1]:
        resumed = Trajectory.of(
            denoiser, asking[0], first.prompt_embeds, first.negative_prompt_embeds, point, first.first_frame
        )
        while resumed.step < 5:
            (resumed,) = advance(denoiser, [resumed])
        assert torch.equal(resumed.final_latents(), job.final_latents())


def test_a_first_frame_of_another_form_is_refused(wan: Families) -> None:
    """Latents of another size, of two frames or in half precision are no first frame of this video."""
    denoiser = wan(TI2V_5B).load_denoiser("cpu")
    embeds = torch.zeros((1, 32))
    for wrong in (torch.zeros((8, 1, 4, 4)), torch.zeros((8, 2, 4, 6)), torch.zeros((8, 1, 4, 6)).half()):
        with pytest.raises(ValueError, match="first frame"):
            Trajectory.of(denoiser, spec(), embeds, embeds, first_frame=wrong)


async def test_through_the_step_engine(wan: Families, pipeline: Pipelines, image_pipeline: Reference) -> None:
    """The engine encodes the images, batches all four jobs, and ends where the pipelines end, frames included."""
    family = wan(TI2V_5B)
    encoder = family.load_text_encoder("cpu")
    engine = StepEngine(
        family.load_denoiser("cpu"), family.load_decoder("cpu"),
        max_batch_size=4, telemetry=Telemetry(lambda event: None), torch_threads=1,
    )  # fmt: skip
    await engine.start()
    points: dict[int, Start] = {}

    async def render(number: int, each: VideoSpec, image: Picture | None) -> tuple[torch.Tensor, Any]:
        last = frozenset({each.num_inference_steps - 1})
        rendering = await engine.render(
            str(number), each, *encoder.encode([each.prompt, each.negative_prompt]), lambda step, total: None,
            checkpoints=Checkpoints(last, lambda point: points.__setitem__(number, point)),
            first_frame=None if image is None else await engine.encode_image(image),
        )  # fmt: skip
        return rendering.latents, rendering.frames

    try:
        results = await asyncio.gather(*(render(number, *job) for number, job in enumerate(MIXED)))
        with pytest.raises(ValueError, match="goes with"):
            await engine.render("5", MIXED[0][0], torch.zeros((1, 32)), torch.zeros((1, 32)), lambda step, total: None)
    finally:
        await engine.stop()
    for number, (job, (latents, frames)) in enumerate(zip(MIXED, results, strict=True)):
        reference = pipeline(TI2V_5B) if job[1] is None else image_pipeline
        *_, before, final = reference.latents(*job)
        later = slice(None) if job[1] is None else slice(1, None)  # the pipeline pins its first frame at the end
        torch.testing.assert_close(points[number].latents[:, later], before[:, later], **CLOSE)
        torch.testing.assert_close(latents.float(), final, atol=1e-4, rtol=2**-10)
        assert np.array_equal(frames, reference.frames(latents))


async def test_a_model_of_text_alone_has_nothing_to_encode_with(wan: Families) -> None:
    """An engine whose decoder encodes no image says so; a running one is needed for any."""
    family = wan(TI2V_5B)

    class DecodesOnly:
        decode = family.load_decoder("cpu").decode

    engine = StepEngine(
        family.load_denoiser("cpu"), DecodesOnly(),
        max_batch_size=1, telemetry=Telemetry(lambda event: None), torch_threads=1,
    )  # fmt: skip
    await engine.start()
    try:
        with pytest.raises(RenderFailed, match="text alone"):
            await engine.encode_image(picture(1))
    finally:
        await engine.stop()


def test_the_card_says_who_takes_an_image(wan: Families) -> None:
    """TI2V does, by `expand_timesteps`; Wan2.1 and A14B do not. What encodes images is in the fingerprint."""
    card = wan(TI2V_5B).card
    assert card.takes_image
    assert card.image_encoder_fingerprint not in (card.decoder_fingerprint, card.model_fingerprint)
    assert not wan(T2V_1_3B).card.takes_image
    assert not wan(T2V_A14B).card.takes_image
    other = wan(replace(TI2V_5B, seed=9)).card
    assert other.image_encoder_fingerprint != card.image_encoder_fingerprint
