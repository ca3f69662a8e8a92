"""From a checkpoint's scheduler to this project's samplers: diffusers' own schedule, our update rules.

The noise levels and timesteps are read from diffusers' scheduler, whatever options made them; the rule that moves the
latents is a pure function here, because a batch holds jobs at different steps and a pass may be run again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from serve_app.model.sampler import History, Sampler
from serve_app.model.wan.unipc import UniPCSampler

KEPT = 256
"""Schedules kept in memory, one a number of steps."""


@dataclass(frozen=True, slots=True)
class EulerSampler:
    """Euler steps between the noise levels of a diffusers schedule, whose timesteps need not be those levels."""

    levels: tuple[float, ...]
    timesteps: tuple[float, ...]

    @property
    def num_inference_steps(self) -> int:
        """How many steps there are."""
        return len(self.timesteps)

    def update(self, i: int, latents: Tensor, noise_pred: Tensor, history: History) -> tuple[Tensor, History]:
        """Take a step; nothing is remembered."""
        return latents + (self.levels[i + 1] - self.levels[i]) * noise_pred, history


def samplers_of(config: Mapping[str, Any]) -> Callable[[int], Sampler]:
    """Return what makes the sampler for a number of steps, by a `scheduler_config.json` that `checkpoint` accepted."""

    @functools.lru_cache(maxsize=KEPT)
    def sampler(num_inference_steps: int) -> Sampler:
        make = _unipc if config["_class_name"] == "UniPCMultistepScheduler" else _euler
        return make(config, num_inference_steps)

    return sampler


def _unipc(config: Mapping[str, Any], num_inference_steps: int) -> UniPCSampler:
    scheduler = UniPCMultistepScheduler.from_config(dict(config))
    return UniPCSampler(
        *_schedule(scheduler, num_inference_steps),
        solver_order=scheduler.config.solver_order,
        disable_corrector=frozenset(scheduler.config.disable_corrector),
    )


def _euler(config: Mapping[str, Any], num_inference_steps: int) -> EulerSampler:
    return EulerSampler(*_schedule(FlowMatchEulerDiscreteScheduler.from_config(dict(config)), num_inference_steps))


def _schedule(scheduler: Any, num_inference_steps: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    scheduler.set_timesteps(num_inference_steps, device="cpu")
    return tuple(scheduler.sigmas.tolist()), tuple(map(float, scheduler.timesteps.tolist()))
