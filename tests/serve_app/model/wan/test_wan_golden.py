"""What each revision of a part computes, as literal numbers, over a checkpoint of seeded weights.

A test here fails when our code or a new diffusers changes what a part computes. Then bump that part's revision in
wan.py, so that old cache entries are not taken for the new model's, and replace the numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from serve_app.engine.denoising import Trajectory, advance
from serve_app.model.sampler import initial_noise
from serve_app.model.wan.wan import DECODER_REVISION, DENOISER_REVISION, TEXT_ENCODER_REVISION, WanFamily
from tests.serve_app.model.wan.reference import spec
from tests.serve_app.model.wan.tiny_checkpoint import T2V_A14B, TI2V_5B

Families = Callable[..., WanFamily]


def sample(values: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in values.flatten()[:: values.numel() // 8][:8].tolist()]


def test_text_encoder_revision(wan: Families) -> None:
    """This revision gives these numbers for these tokens; the tokenizer's training is not ours to pin."""
    net = wan(TI2V_5B).load_text_encoder("cpu")._net  # type: ignore[attr-defined]
    embeds = net(torch.tensor([[7, 30, 12, 1]])).last_hidden_state
    golden: dict[int, list[float]] = {1: [-0.4802, 0.2982, -0.8525, 0.0512, -0.0406, 0.3234, -0.5043, 0.1393]}
    assert sample(embeds) == pytest.approx(golden[TEXT_ENCODER_REVISION], abs=2e-3)


def test_denoiser_revision(wan: Families) -> None:
    """This revision of transformer and sampler takes this noise and context to these latents in three steps."""
    golden: dict[int, dict[object, list[float]]] = {
        1: {
            TI2V_5B: [-0.5456, 0.5555, -1.7444, -0.9247, 4.0029, -1.9965, 0.9799, 0.3334],
            T2V_A14B: [-0.1272, -0.4322, 2.0973, -0.687, -1.3213, -2.6919, -2.4383, -1.5574],
        }
    }
    for kind, expected in golden[DENOISER_REVISION].items():
        denoiser = wan(kind).load_denoiser("cpu")
        job = Trajectory.of(
            denoiser, spec(num_inference_steps=3), initial_noise((5, 32), 11), initial_noise((2, 32), 12)
        )
        while job.step < 3:
            (job,) = advance(denoiser, [job])
        assert sample(job.checkpoint().latents) == pytest.approx(expected, abs=2e-3)


def test_decoder_revision(wan: Families) -> None:
    """This revision of the decoder turns these latents into these pixels (of 255)."""
    frames = wan(TI2V_5B).load_decoder("cpu").decode(initial_noise((8, 2, 4, 4), 7).half())
    golden: dict[int, list[float]] = {1: [137.0, 111.0, 157.0, 118.0, 123.0, 101.0, 153.0, 131.0]}
    assert sample(torch.from_numpy(frames).float()) == pytest.approx(golden[DECODER_REVISION], abs=1.01)
