"""One job's way from noise to latents as an immutable value, and the pass that moves many of them one step.

A step takes trajectories and returns new ones: a job that is cancelled, or a pass that raises, leaves nothing half
done. Each trajectory owns its sampler, seed and embeddings, so what a job computes does not depend on whom it
shares a pass with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from serve_app.core import VideoSpec
from serve_app.model.model import Denoiser
from serve_app.model.sampler import FlowMatchEulerSampler, initial_noise


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """Where one job is: `step` steps done, at `latents` [channels, frames, height, width] (None before the first).

    `negative_prompt_embeds` is None when the job is not guided; then it costs one row of a pass instead of two.
    """

    sampler: FlowMatchEulerSampler
    shape: tuple[int, int, int, int]
    seed: int
    guidance_scale: float
    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None
    latents: Tensor | None = None
    step: int = 0
    is_finite: bool = True

    @classmethod
    def of(
        cls, denoiser: Denoiser, spec: VideoSpec, prompt_embeds: Tensor, negative_prompt_embeds: Tensor | None
    ) -> Trajectory:
        """Start a job; ValueError when guidance is asked for without negative prompt embeddings."""
        guided = spec.guidance_scale != 1.0
        if guided and negative_prompt_embeds is None:
            raise ValueError("guidance_scale other than 1 needs negative_prompt_embeds")
        return cls(
            sampler=FlowMatchEulerSampler(spec.num_inference_steps, denoiser.sampler_shift),
            shape=denoiser.latent_shape(spec),
            seed=spec.seed,
            guidance_scale=spec.guidance_scale,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds if guided else None,
        )

    @property
    def timestep(self) -> float:
        """The noise level the next step starts from."""
        return self.sampler.timesteps[self.step]

    def final_latents(self) -> Tensor:
        """Return the latents in half precision, always: stored and fresh ones then decode to the same video."""
        if self.latents is None:
            raise ValueError("no step was done yet")
        return self.latents.half()


@torch.inference_mode()
def advance(denoiser: Denoiser, batch: Sequence[Trajectory]) -> list[Trajectory]:
    """Move trajectories of one shape one step each, in one forward pass; whatever the model raises comes through.

    Classifier-free guidance (arXiv 2207.12598): the unconditional rows of the guided jobs follow the conditional
    rows of all jobs in the same pass.
    """
    latents = [initial_noise(job.shape, job.seed) if job.latents is None else job.latents for job in batch]
    guided = [i for i, job in enumerate(batch) if job.negative_prompt_embeds is not None]
    rows = [*range(len(batch)), *guided]
    negative = [job.negative_prompt_embeds for job in batch if job.negative_prompt_embeds is not None]
    noise_pred = denoiser.predict(
        _stack([latents[i] for i in rows]),
        torch.tensor([batch[i].timestep for i in rows]),
        [*(job.prompt_embeds for job in batch), *negative],
    )
    velocities = list(noise_pred[: len(batch)])
    for i, unconditional in zip(guided, noise_pred[len(batch) :], strict=True):
        velocities[i] = unconditional + batch[i].guidance_scale * (velocities[i] - unconditional)
    moved = [
        job.sampler.step(job.step, start.to(velocity.device), velocity)
        for job, start, velocity in zip(batch, latents, velocities, strict=True)
    ]
    finite = torch.stack(moved).isfinite().flatten(1).all(dim=1).tolist()
    return [
        replace(job, latents=after, step=job.step + 1, is_finite=fine)
        for job, after, fine in zip(batch, moved, finite, strict=True)
    ]


def _stack(latents: list[Tensor]) -> Tensor:
    # A job that joins brings noise from the CPU; the others are where the denoiser left them.
    device = next((x.device for x in latents if x.device.type != "cpu"), torch.device("cpu"))
    return torch.stack([x.to(device) for x in latents])
