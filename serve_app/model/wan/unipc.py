"""UniPC, the sampler that Wan's checkpoints ask for, as a pure function of a job's history.

diffusers' UniPCMultistepScheduler keeps the past on itself, which a pass that fails half-way would spoil, and reads
numbers back from the device. Here the past is a value and the coefficients are computed on the host, in double
precision; tests hold it to diffusers' class, whose schedule (levels and timesteps) it is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from serve_app.model.sampler import History


@dataclass(frozen=True, slots=True)
class UniPCSampler:
    """The unified predictor-corrector (arXiv 2302.04867) over predicted videos, for models that predict a velocity.

    Its B(h) is exp(h) - 1 ("bh2") and the last steps are of lower order: diffusers' defaults, and all that makes sense
    in a schedule that ends without noise, where the other B(h) is infinite.

    levels: the noise level before each step and after the last, 1 (pure noise) to 0; latents at level s are
    (1 - s) * video + s * noise. The history is up to `solver_order` predicted videos, oldest first, and the latents
    that the last step started from.
    """

    levels: tuple[float, ...]
    timesteps: tuple[float, ...]
    solver_order: int = 2
    disable_corrector: frozenset[int] = frozenset()

    @property
    def num_inference_steps(self) -> int:
        """How many steps there are."""
        return len(self.timesteps)

    def update(self, i: int, latents: Tensor, noise_pred: Tensor, history: History) -> tuple[Tensor, History]:
        """Correct the latents by what was predicted at them, then predict the next ones."""
        video = latents - self.levels[i] * noise_pred
        videos, start = history[:-1], history[-1] if history else latents
        if videos and i - 1 not in self.disable_corrector:
            latents = self._corrected(i - 1, videos, start, video)
        videos = (*videos, video)[-self.solver_order :]
        return self._predicted(i, videos, latents), (*videos, latents)

    def _predicted(self, i: int, videos: Sequence[Tensor], latents: Tensor) -> Tensor:
        interval = _Interval.of(self, i, len(videos))
        order = len(interval.ratios) + 1
        weights = [0.5] if order == 2 else interval.weights(interval.ratios)
        return interval.moved(latents, videos, weights, None)

    def _corrected(self, i: int, videos: Sequence[Tensor], start: Tensor, video: Tensor) -> Tensor:
        """Take step `i` from `start` again, now that the video predicted at its end is known."""
        interval = _Interval.of(self, i, len(videos))
        weights = interval.weights([*interval.ratios, 1.0]) if interval.ratios else [0.5]
        return interval.moved(start, videos, weights, video)

    def order(self, i: int, known: int) -> int:
        """Return the order of step `i` when so many predicted videos are known, the one at its start included."""
        return min(self.solver_order, known, self.num_inference_steps - i)

    def half_log_snr(self, i: int) -> float:
        """Return log((1 - level) / level); infinite where no noise is left."""
        level = self.levels[i]
        return math.log(1 - level) - math.log(level) if level else math.inf


@dataclass(frozen=True, slots=True)
class _Interval:
    """One step in the paper's terms, h being what half the log of the signal-to-noise ratio rises by."""

    level: float
    next_level: float
    minus_h: float
    base: float
    """exp(-h) - 1: B(h) of the paper, and what the newest prediction is weighted by."""
    ratios: list[float]
    """Where the earlier predictions lie, in units of h."""

    @classmethod
    def of(cls, sampler: UniPCSampler, i: int, known: int) -> _Interval:
        here = sampler.half_log_snr(i)
        h = sampler.half_log_snr(i + 1) - here
        return cls(
            level=sampler.levels[i],
            next_level=sampler.levels[i + 1],
            minus_h=-h,
            base=math.expm1(-h),
            ratios=[(sampler.half_log_snr(i - k) - here) / h for k in range(1, sampler.order(i, known))],
        )

    def weights(self, ratios: Sequence[float]) -> list[float]:
        """Solve the conditions of order len(ratios) (the paper's theorem 3.1)."""
        if not ratios:
            return []
        phi = self.base / self.minus_h - 1
        conditions = []
        for k in range(1, len(ratios) + 1):
            conditions.append(phi * math.factorial(k) / self.base)
            phi = phi / self.minus_h - 1 / math.factorial(k + 1)
        powers = np.vander(np.array(ratios), increasing=True).T
        return [float(weight) for weight in np.linalg.solve(powers, np.array(conditions))]

    def moved(self, latents: Tensor, videos: Sequence[Tensor], weights: Sequence[float], last: Tensor | None) -> Tensor:
        """Return the latents at the end, from those at the start; `last` is the video predicted at the end."""
        signal, newest = 1 - self.next_level, videos[-1]
        moved = self.next_level / self.level * latents - signal * self.base * newest
        differences = [(videos[-1 - k] - newest) / ratio for k, ratio in enumerate(self.ratios, start=1)]
        differences += [] if last is None else [last - newest]
        for weight, difference in zip(weights, differences, strict=True):
            moved = moved - signal * self.base * weight * difference
        return moved
