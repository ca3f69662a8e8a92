"""Measuring passes: how far it goes, what stops it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from serve_app.engine import profiling
from serve_app.engine.pass_times import best_rows
from serve_app.engine.profiling import measure
from serve_app.model.families import load_family

SHAPE = (8, 4, 4, 4)


class Machine:
    """A denoiser and a clock: a pass takes `cost[rows]` seconds, more rows than `room` do not fit."""

    context_dim = 4
    device = torch.device("cpu")

    def __init__(self, seconds: Sequence[float], room: int = 1000) -> None:
        self.cost = dict(zip((1, 2, 4, 8, 16), seconds, strict=False))
        self.room, self.now, self.rows = room, 0.0, []

    def sampler(self, num_inference_steps: int) -> Any:
        raise NotImplementedError

    def latent_shape(self, spec: Any) -> Any:
        raise NotImplementedError

    def prepare(self, prompt_embeds: torch.Tensor) -> torch.Tensor:
        assert prompt_embeds.shape == (32, 4)
        return prompt_embeds

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, prompts: Sequence[Any]) -> torch.Tensor:
        assert latents.shape[1:] == SHAPE
        assert len(latents) == len(timesteps) == len(prompts)
        if len(latents) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.rows.append(len(latents))
        self.now += self.cost[len(latents)]
        return latents

    def measured(self, max_rows: int = 8) -> dict[int, float]:
        return {rows: round(taken, 6) for rows, taken in measure(self, SHAPE, max_rows, clock=lambda: self.now).items()}


def test_rows_double_up_to_the_most_that_are_allowed() -> None:
    """Each size is measured three times, the first to warm up."""
    machine = Machine([1.0, 1.1, 1.2, 1.3])
    assert machine.measured(max_rows=8) == {1: 1.0, 2: 1.1, 4: 1.2, 8: 1.3}
    assert machine.rows == [1] * 3 + [2] * 3 + [4] * 3 + [8] * 3


def test_a_full_device_is_not_measured_further() -> None:
    """When two doublings in a row raised nothing, larger passes are not tried."""
    assert list(Machine([1.0, 2.0, 4.0, 8.0, 16.0]).measured(16)) == [1, 2, 4]


def test_too_little_memory_ends_the_measurement() -> None:
    """What fitted was measured; a device in which not one row fits is an error."""
    assert list(Machine([1.0, 1.0, 1.0, 1.0], room=3).measured()) == [1, 2]
    with pytest.raises(torch.OutOfMemoryError):
        Machine([1.0], room=0).measured()


def test_passes_that_would_not_fit_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that took 100 bytes, with 250 free: twice as many would take 200 of the 225 that may be used, 400 not."""
    peaks = iter([0, 50, 100, 200])
    monkeypatch.setattr(profiling, "peak_bytes", lambda device: next(peaks))
    monkeypatch.setattr(profiling, "free_bytes", lambda device: 250)
    assert list(Machine([1.0, 1.0, 1.0, 1.0]).measured()) == [1, 2, 4]


def test_other_errors_come_through() -> None:
    """A model that cannot do its own shape must not become ready."""
    machine = Machine([])
    with pytest.raises(KeyError):
        machine.measured()


def test_the_real_model_is_measured() -> None:
    """native/demo at its own size: every size took some time, and the best is one of them."""
    denoiser = load_family("native/demo").load_denoiser("cpu")
    taken = measure(denoiser, (8, 8, 4, 4), 4)
    assert set(taken) <= {1, 2, 4}
    assert min(taken.values()) > 0
    assert best_rows(taken) in taken
