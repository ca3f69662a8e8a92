"""UniPC as a pure function against diffusers' UniPCMultistepScheduler, the stateful twin."""

from __future__ import annotations

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.model.sampler import History
from serve_app.model.wan.samplers import samplers_of

SHAPE = (2, 3, 4, 4)


def scheduler(**options: object) -> UniPCMultistepScheduler:
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    return UniPCMultistepScheduler(**flow, **options)


def velocities(count: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator) for _ in range(count)]


@settings(max_examples=40, deadline=None)
@given(
    steps=st.integers(1, 30), shift=st.floats(1.0, 12.0), order=st.integers(1, 2), seed=st.integers(0, 99),
    disabled=st.sets(st.integers(0, 5)),
)  # fmt: skip
def test_every_step_is_diffusers_step(steps: int, shift: float, order: int, seed: int, disabled: set[int]) -> None:
    """For any number of steps, shift, order and corrector, latents agree after every step, whatever the model says."""
    twin = scheduler(flow_shift=shift, solver_order=order, disable_corrector=sorted(disabled))
    sampler = samplers_of({**twin.config, "_class_name": "UniPCMultistepScheduler"})(steps)
    twin.set_timesteps(steps)
    twin.set_begin_index(0)
    assert sampler.timesteps == tuple(twin.timesteps.tolist())
    expected, *predicted = velocities(steps + 1, seed)
    latents, history = expected, ()
    for i, velocity in enumerate(predicted):
        expected = twin.step(velocity[None], twin.timesteps[i], expected[None] if i == 0 else expected)[0]
        latents, history = sampler.update(i, latents, velocity, history)
        torch.testing.assert_close(latents, expected[0], atol=5e-5, rtol=0)


def test_the_third_order_is_diffusers_too() -> None:
    """Three predictions in a step's equations, more precisely than the twin's single precision solves them."""
    twin = scheduler(flow_shift=5.0, solver_order=3)
    twin.set_timesteps(12)
    twin.set_begin_index(0)
    sampler = samplers_of({**twin.config, "_class_name": "UniPCMultistepScheduler"})(12)
    expected, *predicted = velocities(13, 1)
    latents, history = expected, ()
    expected = expected[None]
    for i, velocity in enumerate(predicted):
        expected = twin.step(velocity[None], twin.timesteps[i], expected)[0]
        latents, history = sampler.update(i, latents, velocity, history)
    torch.testing.assert_close(latents, expected[0], atol=2e-5, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_perfect_model_is_sampled_to_its_video(steps: int) -> None:
    """With the true velocity from anywhere to one video, every number of steps ends at that video."""
    sampler = samplers_of({**scheduler(flow_shift=3.0).config, "_class_name": "UniPCMultistepScheduler"})(steps)
    video, latents = velocities(2, 5)
    history: History = ()
    for i in range(steps):
        latents, history = sampler.update(i, latents, (latents - video) / sampler.levels[i], history)
    torch.testing.assert_close(latents, video, atol=1e-4, rtol=0)


def test_a_step_leaves_its_arguments_alone() -> None:
    """The same step from the same past gives the same bits again: a pass that failed can be run once more."""
    sampler = samplers_of({**scheduler().config, "_class_name": "UniPCMultistepScheduler"})(6)
    latents, *predicted = velocities(7, 2)
    history: History = ()
    for i, velocity in enumerate(predicted):
        given = [each.clone() for each in (latents, velocity, *history)]
        once = sampler.update(i, latents, velocity, history)
        again = sampler.update(i, latents, velocity, history)
        for one, other in zip((latents, velocity, *history), given, strict=True):
            assert torch.equal(one, other)
        assert torch.equal(once[0], again[0])
        assert len(once[1]) == min(i + 1, 2) + 1
        latents, history = once
