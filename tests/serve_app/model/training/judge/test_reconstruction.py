"""Clips through the autoencoder and back."""

from __future__ import annotations

import numpy as np
import torch

from serve_app.model.native.native import NativeFamily, from_folder
from serve_app.model.native.weights import SeededWeights
from serve_app.model.training.judge.reconstruction import reconstruction
from serve_app.model.training.world import world
from tests.serve_app.model.training.short_run import ShortRun


def test_a_clip_comes_back_recognisably(short_run: ShortRun) -> None:
    """Even the short run's autoencoder returns a picture nearer to its own clip than to another."""
    family = from_folder(short_run.checkpoint)
    back = reconstruction(family, family.load_decoder("cpu"))
    assert back is not None
    rng = np.random.default_rng(0)
    one, other = world.render([world.Scene(*("star", "red", name, "large", "up")) for name in ("white", "black")], rng)
    found = back(one)
    assert (found.shape, found.dtype) == (one.shape, torch.uint8)
    assert (found.float() - one.float()).abs().mean() < (found.float() - other.float()).abs().mean()


def test_weights_without_an_encoder_have_no_reconstruction(short_run: ShortRun) -> None:
    """Seeded weights can serve, but nothing encodes with them."""
    trained = from_folder(short_run.checkpoint)
    family = NativeFamily(trained.config, SeededWeights(1), trained.tokenizer)
    assert reconstruction(family, family.load_decoder("cpu")) is None
