"""Stage one: which pixels the autoencoder sees, and what its loss is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from serve_app.model.training.recipe import SHORT, SHORT_MODEL
from serve_app.model.training.stages.autoencoding import Autoencoder, Autoencoding, _around_edges, psnr, to_unit


@pytest.fixture(scope="module")
def module() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(SHORT_MODEL.autoencoder)


def stage(module: Autoencoder, crop_share: float, batch: int = 8) -> Autoencoding:
    return Autoencoding(module, replace(SHORT, crop_share=crop_share), batch=batch)


def test_crops_and_frames(module: Autoencoder) -> None:
    """A step sees a batch of crops or a quarter as many whole frames, in [-1, 1]."""
    crops = stage(module, crop_share=1)._pixels(np.random.default_rng(0))
    frames = stage(module, crop_share=0)._pixels(np.random.default_rng(0))
    assert (crops.shape, frames.shape) == ((8, 3, SHORT.crop, SHORT.crop), (2, 3, 64, 64))
    assert max(crops.abs().max(), frames.abs().max()) <= 1


def test_only_training_scenes_are_drawn(module: Autoencoder) -> None:
    """The autoencoder never sees a held-out combination."""
    assert not any(scene.held_out for scene in stage(module, 0)._scenes)


def test_crops_lie_around_edges() -> None:
    """A crop of a picture with one edge holds it; where there is none, the middle is cut."""
    picture = torch.full((1, 3, 64, 64), -1.0)
    picture[..., 45:] = 1.0
    for seed in range(20):
        crop = _around_edges(picture, 16, np.random.default_rng(seed))
        assert crop.min() == -1
        assert crop.max() == 1
    assert _around_edges(torch.zeros(1, 3, 64, 64), 16, np.random.default_rng(0)).shape == (1, 3, 16, 16)


def test_the_loss_depends_on_the_generator_alone(module: Autoencoder) -> None:
    """The same generator state gives the same loss to the bit, whatever torch's own generator holds."""
    first, figures = stage(module, 0.5).loss(0, np.random.default_rng(5))
    torch.rand(3)
    again, _ = stage(module, 0.5).loss(7, np.random.default_rng(5))
    other, _ = stage(module, 0.5).loss(0, np.random.default_rng(6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert figures["psnr"] == pytest.approx(psnr(10 ** (-figures["psnr"] / 10) * 4))


def test_units() -> None:
    """uint8 spans [-1, 1]; an error of 2 over that range is 0 dB, a hundredth of it 40 dB."""
    assert to_unit(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]
    assert psnr(4.0) == 0
    assert psnr(4e-4) == pytest.approx(40)
