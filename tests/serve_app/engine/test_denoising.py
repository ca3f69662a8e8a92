"""One pass over many trajectories, with the real demo denoiser: company must not show in anybody's latents."""

import dataclasses

import pytest
import torch

from serve_app.core import VideoSpec
from serve_app.engine.denoising import Trajectory, advance
from serve_app.model.model import Denoiser, load_family
from serve_app.model.sampler import initial_noise


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    torch.set_num_threads(1)
    return load_family("native/demo").load_denoiser("cpu")


def spec(**changes: float) -> VideoSpec:
    base = VideoSpec(
        model="native/demo",
        prompt="",
        negative_prompt="",
        seed=42,
        width=32,
        height=32,
        num_frames=8,
        fps=16,
        num_inference_steps=4,
        guidance_scale=3.0,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def embeds(num_tokens: int, seed: int) -> torch.Tensor:
    return initial_noise((num_tokens, 768), seed)


def alone(denoiser: Denoiser, job: Trajectory) -> torch.Tensor:
    """The oracle: one job, and guidance as two separate passes."""
    latents = initial_noise(job.shape, job.seed)
    for i, timestep in enumerate(job.sampler.timesteps):
        velocity = denoiser.predict(latents[None], torch.tensor([timestep]), [job.prompt_embeds])[0]
        if job.negative_prompt_embeds is not None:
            negative = denoiser.predict(latents[None], torch.tensor([timestep]), [job.negative_prompt_embeds])[0]
            velocity = negative + job.guidance_scale * (velocity - negative)
        latents = job.sampler.step(i, latents, velocity)
    return latents


def test_a_job_gets_the_same_latents_alone_and_in_company(denoiser: Denoiser) -> None:
    """Other prompts, steps, guidance, seeds and a later start in one batch change nobody's latents by 1e-4."""
    jobs = [
        Trajectory.of(denoiser, spec(), embeds(20, 1), embeds(2, 2)),
        Trajectory.of(denoiser, spec(seed=7, num_inference_steps=6, guidance_scale=1.0), embeds(50, 3), None),
        Trajectory.of(denoiser, spec(seed=8, num_inference_steps=2, guidance_scale=7.5), embeds(5, 4), embeds(9, 5)),
    ]
    running = {0: jobs[0]}
    done: dict[int, torch.Tensor] = {}
    for joining in (1, 2, None, None, None, None, None):
        moved = advance(denoiser, list(running.values()))
        running = dict(zip(running, moved, strict=True))
        for i in [i for i, job in running.items() if job.step == job.sampler.num_inference_steps]:
            latents = running.pop(i).latents
            assert latents is not None
            done[i] = latents
        if joining is not None:
            running[joining] = jobs[joining]
    assert set(done) == {0, 1, 2}
    for i, job in enumerate(jobs):
        torch.testing.assert_close(done[i], alone(denoiser, job), atol=1e-4, rtol=0)


def test_the_same_job_twice_gives_the_same_bits(denoiser: Denoiser) -> None:
    """Same spec, same embeddings, same batch: bit-equal latents."""
    first, second = (
        advance(denoiser, [Trajectory.of(denoiser, spec(), embeds(20, 1), embeds(2, 2))])[0].latents for _ in range(2)
    )
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)


def test_a_step_leaves_the_old_trajectory_as_it_was(denoiser: Denoiser) -> None:
    """Advancing returns new values, so a step whose job was cancelled can simply be thrown away."""
    job = Trajectory.of(denoiser, spec(), embeds(3, 1), embeds(2, 2))
    (once,) = advance(denoiser, [job])
    kept = once.latents.clone() if once.latents is not None else None
    (twice,) = advance(denoiser, [once])
    assert (job.step, job.latents, once.step, twice.step) == (0, None, 1, 2)
    assert kept is not None
    assert once.latents is not None
    assert torch.equal(once.latents, kept)


def test_only_the_poisoned_job_is_not_finite(denoiser: Denoiser) -> None:
    """NaN in one job's context stays in that job's row."""
    good = Trajectory.of(denoiser, spec(), embeds(4, 1), embeds(2, 2))
    bad = Trajectory.of(denoiser, spec(), torch.full((6, 768), torch.nan), embeds(2, 2))
    moved = advance(denoiser, [bad, good])
    assert [job.is_finite for job in moved] == [False, True]
    latents = moved[1].latents
    assert latents is not None
    torch.testing.assert_close(latents, advance(denoiser, [good])[0].latents, atol=1e-4, rtol=0)


def test_guidance_without_negative_embeddings_is_refused(denoiser: Denoiser) -> None:
    """A guided job must bring its unconditional side; an unguided one drops it and pays for one row only."""
    with pytest.raises(ValueError, match="negative_prompt_embeds"):
        Trajectory.of(denoiser, spec(), embeds(4, 1), None)
    unguided = Trajectory.of(denoiser, spec(guidance_scale=1.0), embeds(4, 1), embeds(2, 2))
    assert unguided.negative_prompt_embeds is None


def test_final_latents_are_half_precision(denoiser: Denoiser) -> None:
    """What leaves for the decoder is float16; before the first step there is nothing to hand over."""
    job = Trajectory.of(denoiser, spec(), embeds(4, 1), embeds(2, 2))
    with pytest.raises(ValueError, match="no step"):
        job.final_latents()
    assert advance(denoiser, [job])[0].final_latents().dtype == torch.float16
