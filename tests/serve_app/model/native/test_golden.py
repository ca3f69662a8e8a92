"""What each revision of a part computes, as literal numbers.

A test here fails when code changes what a part computes. Then bump that part's revision in config.py, so that old
cache entries are not taken for the new model's, and replace the numbers. The tolerance forgives other processors.
"""

import dataclasses
from pathlib import Path

import pytest
import torch

from serve_app.model.native import native
from serve_app.model.native.config import DECODER_REVISION, DEMO, DENOISER_REVISION, TEXT_ENCODER_REVISION
from serve_app.model.native.native import NativeFamily
from serve_app.model.native.tokenizer import Tokenizer
from serve_app.model.native.weights import SeededWeights
from serve_app.model.sampler import FlowMatchEulerSampler, initial_noise

TOKENIZER = Tokenizer(Path(native.__file__).parent / "demo" / "tokenizer.json")
FAMILY = NativeFamily(dataclasses.replace(DEMO, denoiser_dtype=None), SeededWeights(seed=2), TOKENIZER)


def sample(values: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in values.flatten()[:: values.numel() // 8][:8].tolist()]


def test_text_encoder_revision() -> None:
    """This revision of the text encoder gives these numbers for this prompt."""
    (embeds,) = FAMILY.load_text_encoder("cpu").encode(["a red circle"])
    golden: dict[int, list[float]] = {3: [0.513, -1.014, -1.3935, 2.0999, 0.0272, -0.2403, -0.2728, -0.2198]}
    assert sample(embeds) == pytest.approx(golden[TEXT_ENCODER_REVISION], abs=2e-3)


def test_denoiser_revision() -> None:
    """This revision of denoiser and sampler takes this noise and context to these latents in three steps."""
    denoiser = FAMILY.load_denoiser("cpu")
    prompt = denoiser.prepare(initial_noise((5, 768), 11))
    sampler = FlowMatchEulerSampler(3, denoiser.sampler_shift)
    latents = initial_noise((8, 3, 4, 6), 7)
    for i, timestep in enumerate(sampler.timesteps):
        latents = sampler.step(i, latents, denoiser.predict(latents[None], torch.tensor([timestep]), [prompt])[0])
    golden: dict[int, list[float]] = {4: [-1.2863, -1.4826, 0.5793, -1.5469, 0.4899, -0.0044, -0.1656, -2.4074]}
    assert sample(latents) == pytest.approx(golden[DENOISER_REVISION], abs=2e-3)


def test_decoder_revision() -> None:
    """This revision of the decoder turns these latents into these pixels (of 255)."""
    frames = FAMILY.load_decoder("cpu").decode(initial_noise((8, 2, 4, 4), 7).half())
    golden: dict[int, list[float]] = {3: [103.0, 236.0, 0.0, 94.0, 84.0, 166.0, 149.0, 86.0]}
    assert sample(torch.from_numpy(frames).float()) == pytest.approx(golden[DECODER_REVISION], abs=1.01)
