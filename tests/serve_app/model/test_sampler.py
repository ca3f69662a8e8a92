import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.model.sampler import FlowMatchEulerSampler, initial_noise

samplers = st.builds(
    FlowMatchEulerSampler, num_inference_steps=st.integers(1, 200), shift=st.floats(0.5, 12.0, allow_nan=False)
)


@settings(deadline=None)
@given(samplers)
def test_the_schedule_descends_from_pure_noise(sampler: FlowMatchEulerSampler) -> None:
    """A schedule has one level per step, starts at 1 and falls strictly without reaching 0."""
    levels = sampler.timesteps
    assert len(levels) == sampler.num_inference_steps
    assert levels[0] == 1.0
    assert all(later < earlier for earlier, later in itertools.pairwise(levels))
    assert levels[-1] > 0.0


@settings(deadline=None)
@given(samplers, st.integers(0, 2**63 - 1))
def test_a_constant_velocity_is_integrated_exactly(sampler: FlowMatchEulerSampler, seed: int) -> None:
    """On a straight path (velocity noise - video) any number of steps ends at the video."""
    noise, video = initial_noise((2, 3), seed), torch.full((2, 3), 0.25)
    latents = noise
    for i in range(sampler.num_inference_steps):
        latents = sampler.step(i, latents, noise - video)
    torch.testing.assert_close(latents, video, atol=1e-4, rtol=0)


@settings(deadline=None)
@given(samplers)
def test_a_step_leaves_its_inputs_alone(sampler: FlowMatchEulerSampler) -> None:
    """Jobs share tensors with a batch, so a step returns new latents and changes neither argument."""
    latents, velocity = torch.ones(4), torch.ones(4)
    after = sampler.step(0, latents, velocity)
    assert torch.equal(latents, torch.ones(4))
    assert torch.equal(velocity, torch.ones(4))
    assert not torch.equal(after, latents)


@settings(deadline=None)
@given(st.integers(2, 100), st.floats(1.1, 10.0), st.floats(0.1, 5.0))
def test_a_larger_shift_stays_longer_in_the_noise(steps: int, shift: float, more: float) -> None:
    """Every level after the first is higher under a larger shift."""
    low = FlowMatchEulerSampler(steps, shift).timesteps
    high = FlowMatchEulerSampler(steps, shift + more).timesteps
    assert all(b > a for a, b in zip(low[1:], high[1:], strict=True))


def test_shift_three_halfway_is_three_quarters() -> None:
    """The shift is Stable Diffusion 3's formula: 3 * 0.5 / (1 + 2 * 0.5) = 0.75."""
    assert FlowMatchEulerSampler(2, shift=3.0).timesteps == (1.0, 0.75)


@pytest.mark.parametrize(("steps", "shift"), [(0, 3.0), (-1, 3.0), (4, 0.0)])
def test_an_impossible_schedule_is_refused(steps: int, shift: float) -> None:
    """A schedule without steps or with a shift that is not positive is a ValueError."""
    with pytest.raises(ValueError, match="num_inference_steps"):
        FlowMatchEulerSampler(steps, shift)


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1))
def test_noise_depends_on_the_seed_alone(seed: int) -> None:
    """The same seed gives the same bits whatever torch's global generator did meanwhile; another seed gives others."""
    first = initial_noise((2, 8), seed)
    torch.rand(3)
    assert torch.equal(first, initial_noise((2, 8), seed))
    assert not torch.equal(first, initial_noise((2, 8), seed ^ 1))


def test_noise_is_standard_normal() -> None:
    """A large draw has mean 0 and standard deviation 1 to a hundredth."""
    noise = initial_noise((100_000,), 42)
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.std()) - 1) < 0.01
