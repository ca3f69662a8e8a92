"""One job's way from noise to latents as an immutable value, and the pass that moves many of them one step.

A step takes trajectories and returns new ones: a job that is cancelled, or a pass that raises, leaves nothing half
done. Each trajectory owns its sampler, seed and prepared prompt, so what a job computes does not depend on whom it
shares a pass with. Its latents after some step, with what its sampler remembers, are all that a later job needs to go
on from there, to the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from serve_app.core import VideoSpec
from serve_app.model.model import Denoiser, Prepared
from serve_app.model.sampler import History, Sampler, initial_noise


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """A point to go on from: float32 latents [channels, frames, height, width] after `step` steps.

    Without the sampler's `history` one of several steps begins afresh there, and ends elsewhere.
    """

    step: int
    latents: Tensor
    history: History = ()


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """Where one job is: `step` steps done, at `latents` [channels, frames, height, width] (None before the first).

    `negative_prompt_embeds` is None when the job is not guided; then it costs one row of a pass instead of two.
    `prompt` and `negative_prompt` are what the denoiser made of the embeddings, from the first pass on.
    """

    sampler: Sampler
    shape: tuple[int, int, int, int]
    seed: int
    guidance_scale: float
    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None
    latents: Tensor | None = None
    history: History = ()
    step: int = 0
    is_finite: bool = True
    prompt: Prepared | None = None
    negative_prompt: Prepared | None = None
    first_frame: Tensor | None = None
    """Latents [channels, 1, height, width] of a frame that is given: it stays as it is, and the rest follows it."""

    @classmethod
    def of(
        cls,
        denoiser: Denoiser,
        spec: VideoSpec,
        prompt_embeds: Tensor,
        negative_prompt_embeds: Tensor | None,
        start: Start | None = None,
        first_frame: Tensor | None = None,
    ) -> Trajectory:
        """Begin a job, from `start` if there is one; computes nothing.

        ValueError when guidance is asked for without negative prompt embeddings, when a start is not float32 latents
        of the job's shape or has done no step or all of them, and when a first frame is not float32 latents of one.
        """
        if spec.guided and negative_prompt_embeds is None:
            raise ValueError("guidance_scale other than 1 needs negative_prompt_embeds")
        shape = denoiser.latent_shape(spec)
        if start is not None:
            _check(start, shape, spec.num_inference_steps)
        if first_frame is not None:
            _check_form(first_frame, (shape[0], 1, *shape[2:]), "a first frame's")
        return cls(
            sampler=denoiser.sampler(spec.num_inference_steps),
            shape=shape,
            seed=spec.seed,
            guidance_scale=spec.guidance_scale,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds if spec.guided else None,
            latents=None if start is None else start.latents,
            history=() if start is None else start.history,
            step=0 if start is None else start.step,
            first_frame=first_frame,
        )

    @property
    def timestep(self) -> float:
        """What the denoiser is told before the next step."""
        return self.sampler.timesteps[self.step]

    def checkpoint(self) -> Start:
        """Return where the job is, latents on the CPU; a job that starts there ends with the same bits as this one.

        On a GPU this waits for the device. ValueError before the first step.
        """
        return Start(self.step, self._reached().cpu(), tuple(each.cpu() for each in self.history))

    def final_latents(self) -> Tensor:
        """Return the latents in half precision, always: stored and fresh ones then decode to the same video."""
        return self._reached().half()

    def _reached(self) -> Tensor:
        if self.latents is None:
            raise ValueError("no step was done yet")
        return self.latents


def _check(start: Start, shape: tuple[int, ...], num_inference_steps: int) -> None:
    if not 0 < start.step < num_inference_steps:
        raise ValueError(f"a start is after 1 to {num_inference_steps - 1} steps, not {start.step}")
    for each in (start.latents, *start.history):
        _check_form(each, shape, "a start's")


def _check_form(latents: Tensor, shape: tuple[int, ...], whose: str) -> None:
    if latents.shape != shape or latents.dtype != torch.float32:
        raise ValueError(f"{whose} latents are torch.float32 {shape}, not {latents.dtype} {tuple(latents.shape)}")


@torch.inference_mode()
def advance(denoiser: Denoiser, batch: Sequence[Trajectory]) -> list[Trajectory]:
    """Move trajectories of one shape one step each, in one forward pass; whatever the model raises comes through.

    Classifier-free guidance (arXiv 2207.12598): the unconditional rows of the guided jobs follow the conditional
    rows of all jobs in the same pass. A job's first pass prepares its prompts and brings its noise; after that the
    timesteps, a number a row, are all that goes to the device, and only at the end does the host wait for it: there
    it reads which jobs are finite.

    A denoiser with `batch_invariant` gives a row the same bytes in any company. Without it rows are independent to
    rounding, as other sizes of matrix products round otherwise, and guidance multiplies it: in native/demo on a CPU in
    bfloat16 a clip of the default size with guidance up to 3 was at most 0.06 apart among eight, a pixel by 8 of 255;
    at 7.5 and two steps single pixels were 57 apart, the mean one 2. What follows the pass is arithmetic number by
    number, each rounded as IEEE 754 says, and the same in any company.
    """
    batch = [_prepared(denoiser, job) for job in batch]
    latents = [job._reached() for job in batch]
    guided = [i for i, job in enumerate(batch) if job.negative_prompt is not None]
    rows = [*range(len(batch)), *guided]
    noise_pred = denoiser.predict(
        torch.stack([latents[i] for i in rows]),
        _sent(_timesteps([batch[i] for i in rows]), denoiser.device),
        [*(job.prompt for job in batch), *(batch[i].negative_prompt for i in guided)],
    )
    velocities = list(noise_pred[: len(batch)])
    for i, unconditional in zip(guided, noise_pred[len(batch) :], strict=True):
        velocities[i] = unconditional + batch[i].guidance_scale * (velocities[i] - unconditional)
    moved = [_updated(job, start, velocity) for job, start, velocity in zip(batch, latents, velocities, strict=True)]
    finite = torch.stack([after for after, _ in moved]).isfinite().flatten(1).all(dim=1).tolist()
    return [
        replace(job, latents=after, history=history, step=job.step + 1, is_finite=fine)
        for job, (after, history), fine in zip(batch, moved, finite, strict=True)
    ]


def _prepared(denoiser: Denoiser, job: Trajectory) -> Trajectory:
    """Return the job as passes want it: latents on the device, prompts prepared, each alone."""
    if job.prompt is not None:
        return job
    latents = initial_noise(job.shape, job.seed) if job.latents is None else job.latents
    first_frame = None if job.first_frame is None else _sent(job.first_frame, denoiser.device)
    negative = job.negative_prompt_embeds
    return replace(
        job,
        latents=_begun_by(first_frame, _sent(latents, denoiser.device)),
        first_frame=first_frame,
        history=tuple(_sent(each, denoiser.device) for each in job.history),
        prompt=denoiser.prepare(job.prompt_embeds),
        negative_prompt=None if negative is None else denoiser.prepare(negative),
    )


def _timesteps(rows: Sequence[Trajectory]) -> Tensor:
    """Return a timestep a row; one a latent frame where any row's first is given, which is told apart by 0.

    That is what `expand_timesteps` does in WanImageToVideoPipeline, token by token.
    """
    if all(job.first_frame is None for job in rows):
        return torch.tensor([job.timestep for job in rows])
    timesteps = torch.tensor([job.timestep for job in rows])[:, None].repeat(1, rows[0].shape[1])
    timesteps[[job.first_frame is not None for job in rows], 0] = 0.0
    return timesteps


def _updated(job: Trajectory, latents: Tensor, velocity: Tensor) -> tuple[Tensor, History]:
    after, history = job.sampler.update(job.step, latents, velocity, job.history)
    return _begun_by(job.first_frame, after), history


def _begun_by(first_frame: Tensor | None, latents: Tensor) -> Tensor:
    """Return latents whose first frame is the given one; samplers move each number by itself, so no other feels it."""
    return latents if first_frame is None else torch.cat([first_frame, latents[:, 1:]], dim=1)


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """Copy to the device; from pinned memory to a GPU, so that the host does not wait until it has arrived."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
