"""What each revision of a part computes, as literal numbers.

A test here fails when code changes what a part computes. Then bump that part's revision in config.py, so that old
cache entries are not taken for the new model's, and replace the numbers. The tolerance forgives other processors.
"""

import pytest
import torch

from serve_app.model.native.config import DECODER_REVISION, DEMO, DENOISER_REVISION, TEXT_ENCODER_REVISION
from serve_app.model.native.native import NativeFamily
from serve_app.model.native.weights import SeededWeights
from serve_app.model.sampler import FlowMatchEulerSampler, initial_noise

FAMILY = NativeFamily(DEMO, SeededWeights(seed=2))


def sample(values: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in values.flatten()[:: values.numel() // 8][:8].tolist()]


def test_text_encoder_revision() -> None:
    """This revision of the text encoder gives these numbers for this prompt."""
    (embeds,) = FAMILY.load_text_encoder("cpu").encode(["a red circle"])
    golden: dict[int, list[float]] = {1: [-1.0577, -0.463, -1.8808, 0.0578, -2.3491, 0.9252, -0.4927, -0.7425]}
    assert sample(embeds) == pytest.approx(golden[TEXT_ENCODER_REVISION], abs=2e-3)


def test_denoiser_revision() -> None:
    """This revision of denoiser and sampler takes this noise and context to these latents in three steps."""
    denoiser = FAMILY.load_denoiser("cpu")
    context = initial_noise((5, 768), 11)
    sampler = FlowMatchEulerSampler(3, denoiser.sampler_shift)
    latents = initial_noise((8, 3, 4, 6), 7)
    for i, timestep in enumerate(sampler.timesteps):
        latents = sampler.step(i, latents, denoiser.predict(latents[None], torch.tensor([timestep]), [context])[0])
    golden: dict[int, list[float]] = {1: [-0.5513, -1.8705, -1.0878, -2.0207, 0.6692, -1.0424, 1.0544, -2.9496]}
    assert sample(latents) == pytest.approx(golden[DENOISER_REVISION], abs=2e-3)


def test_decoder_revision() -> None:
    """This revision of the decoder turns these latents into these pixels (of 255)."""
    frames = FAMILY.load_decoder("cpu").decode(initial_noise((8, 2, 4, 4), 7).half())
    golden: dict[int, list[float]] = {1: [102.0, 172.0, 122.0, 115.0, 131.0, 157.0, 98.0, 84.0]}
    assert sample(torch.from_numpy(frames).float()) == pytest.approx(golden[DECODER_REVISION], abs=1.01)
