"""The noise samplers: what all of them owe the engine, and flow matching with Euler steps.

A batch holds jobs at different steps of different schedules, and a pass may fail and be run again. So no sampler keeps
a position or a past of its own: the step's index and what the sampler wanted remembered come from the caller. Noise is
drawn on the CPU from a generator of the request's seed, so that a request starts from the same noise on every device
and in every batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

History: TypeAlias = tuple[Tensor, ...]
"""What a sampler remembers of a job's earlier steps, float32 of latents' shape each; empty before the first."""


class Sampler(Protocol):
    """The noise schedule and the update rule of one job, immutable."""

    @property
    def num_inference_steps(self) -> int:
        """How many steps there are."""
        ...

    @property
    def timesteps(self) -> tuple[float, ...]:
        """What the denoiser is told before each step, on the scale it was trained with, descending."""
        ...

    def update(self, i: int, latents: Tensor, noise_pred: Tensor, history: History) -> tuple[Tensor, History]:
        """Return new latents after step `i` (0-based), and the history for the next one; no argument is changed.

        The host waits for nothing. An empty history in the middle is a fresh start there.
        """
        ...


@dataclass(frozen=True, slots=True)
class FlowMatchEulerSampler:
    """Noise levels from 1 (pure noise) down to 0, more densely near 1 the larger `shift` is.

    Rectified flow (arXiv 2209.03003): latents at level s are (1 - s) * video + s * noise, the model predicts
    noise - video, and sampling integrates that from 1 to 0. The shift s -> shift * s / (1 + (shift - 1) * s) is
    Stable Diffusion 3's (arXiv 2403.03206, eq. 23).
    """

    num_inference_steps: int
    shift: float = 3.0
    _levels: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        steps = self.num_inference_steps
        if steps < 1 or self.shift <= 0:
            raise ValueError("num_inference_steps must be at least 1 and shift positive")
        even = [1 - i / steps for i in range(steps + 1)]
        levels = tuple(self.shift * s / (1 + (self.shift - 1) * s) for s in even)
        object.__setattr__(self, "_levels", levels)

    @property
    def timesteps(self) -> tuple[float, ...]:
        """The noise level before each step, descending from 1; the level after the last is 0."""
        return self._levels[:-1]

    def step(self, i: int, latents: Tensor, noise_pred: Tensor) -> Tensor:
        """Return new latents after step `i` (0-based); neither argument is changed."""
        return latents + (self._levels[i + 1] - self._levels[i]) * noise_pred

    def update(self, i: int, latents: Tensor, noise_pred: Tensor, history: History) -> tuple[Tensor, History]:
        """Take a step; nothing is remembered."""
        return self.step(i, latents, noise_pred), history


def initial_noise(shape: Sequence[int], seed: int) -> Tensor:
    """Draw float32 standard normal noise on the CPU; `seed` from 0 to 2**63 - 1."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))
