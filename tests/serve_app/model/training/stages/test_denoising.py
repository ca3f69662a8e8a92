"""Stage three: noise levels, empty prompts and the start as an identity."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
import torch

from serve_app.model.native.denoiser import DenoiserNet
from serve_app.model.native.text_encoder import TextEncoderNet
from serve_app.model.native.tokenizer import Tokenizer
from serve_app.model.training.recipe import SHORT_MODEL
from serve_app.model.training.stages import denoising
from serve_app.model.training.stages.clips import Clips
from serve_app.model.training.stages.denoising import Denoising, initialise
from serve_app.model.training.world import world
from serve_app.model.training.world.world import Scene
from tests.serve_app.model.training.short_run import ShortRun

NOISE = NormalDist(0.8, 1.2)


def stage(run: ShortRun, *, dropout: float = 0.5, batch: int = 16) -> Denoising:
    torch.manual_seed(0)
    net = DenoiserNet(SHORT_MODEL.denoiser)
    initialise(net)
    return Denoising(
        net,
        TextEncoderNet(SHORT_MODEL.text_encoder),
        Tokenizer(run.folder / "tokenizer.json"),
        {8: Clips(np.load(run.folder / "latents-8.npy"), world.scenes(held_out=False)[:32])},
        batch=batch,
        max_tokens=256,
        noise=NOISE,
        caption_dropout=dropout,
    )


def test_levels_cover_their_distribution_evenly(short_run: ShortRun) -> None:
    """Every batch has one level from each part of the distribution, in no order."""
    levels = stage(short_run)._levels(np.random.default_rng(0))
    parts = np.array([NOISE.cdf(math.log(level / (1 - level))) for level in levels])
    assert all(i / 16 <= part < (i + 1) / 16 for i, part in enumerate(np.sort(parts)))
    assert any(before > after for before, after in pairwise(levels))


def test_some_prompts_are_empty(short_run: ShortRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guidance has something to compare with: the asked-for share of prompts is empty, the others are captions."""
    asked: list[Scene] = []
    real = denoising.training_prompt

    def recorded(scene: Scene, rng: np.random.Generator) -> tuple[str, Scene]:
        asked.append(scene)
        return real(scene, rng)

    monkeypatch.setattr(denoising, "training_prompt", recorded)
    batches = stage(short_run, dropout=0.5)
    for seed in range(10):
        batches._batch_of(batches._sets[0], np.random.default_rng(seed))
    assert 50 < len(asked) < 110
    assert not any(scene.held_out for scene in asked)


def test_the_loss_depends_on_the_generator_alone(short_run: ShortRun) -> None:
    """The same generator state gives the same loss to the bit; dropout of prompts is part of it."""
    denoiser = stage(short_run)
    first, _ = denoiser.loss(0, np.random.default_rng(5))
    torch.rand(3)
    assert torch.equal(first, denoiser.loss(3, np.random.default_rng(5))[0])
    assert not torch.equal(first, denoiser.loss(0, np.random.default_rng(6))[0])


def test_the_text_encoder_is_frozen(short_run: ShortRun) -> None:
    """The loss reaches the denoiser's weights and nothing of the text encoder."""
    denoiser = stage(short_run)
    denoiser.loss(0, np.random.default_rng(5))[0].backward()
    assert denoiser.module.project_out.weight.grad is not None
    assert all(not each.requires_grad and each.grad is None for each in denoiser._text_encoder.parameters())


def test_an_initialised_net_predicts_nothing() -> None:
    """At first the velocity is 0 and every block passes its input on, so that early steps are tame."""
    torch.manual_seed(0)
    net = DenoiserNet(SHORT_MODEL.denoiser)
    latents, context = torch.randn(1, 8, 4, 4, 4), torch.randn(1, 3, 64)
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert net(latents, torch.tensor([0.5]), context, mask).abs().max() > 0
    initialise(net)
    assert net(latents, torch.tensor([0.5]), context, mask).abs().max() == 0
    torch.nn.init.ones_(net.project_out.weight)
    other = net(latents, torch.tensor([0.1]), -context, mask)
    assert torch.equal(net(latents, torch.tensor([0.5]), context, mask), other)
