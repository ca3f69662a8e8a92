"""From a scheduler's configuration to a sampler: diffusers' schedule, and Euler steps between its levels."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from serve_app.model.wan.samplers import EulerSampler, samplers_of


@pytest.mark.parametrize("steps", [1, 5, 30])
@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_euler_is_diffusers_euler(steps: int, shift: float) -> None:
    """Timesteps and latents agree with FlowMatchEulerDiscreteScheduler after every step; nothing is remembered."""
    twin = FlowMatchEulerDiscreteScheduler(shift=shift)
    sampler = samplers_of({**twin.config, "_class_name": "FlowMatchEulerDiscreteScheduler"})(steps)
    assert isinstance(sampler, EulerSampler)
    assert sampler.num_inference_steps == steps
    twin.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    latents = expected = torch.randn(2, 3, 4, 4, generator=generator)
    for i in range(steps):
        velocity = torch.randn(latents.shape, generator=generator)
        assert sampler.timesteps[i] == float(twin.timesteps[i])
        expected = twin.step(velocity, twin.timesteps[i], expected, return_dict=False)[0]
        latents, history = sampler.update(i, latents, velocity, ())
        assert history == ()
        torch.testing.assert_close(latents, expected, atol=1e-6, rtol=0)


def test_a_schedule_is_made_once() -> None:
    """Jobs with as many steps share one sampler, which is safe because it is immutable."""
    config = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True}
    sampler = samplers_of(config)
    assert sampler(4) is sampler(4)
    assert sampler(4).num_inference_steps == 4
    with pytest.raises(AttributeError):
        sampler(4).levels = ()  # type: ignore[attr-defined]
