"""Stage three, the denoiser: flow matching on encoded clips, the text encoder frozen.

Noise levels are logit-normal (arXiv 2403.03206 §3.1), one from each part of the distribution in every batch, which
makes the loss of single steps comparable. An empty prompt now and then teaches what guidance subtracts.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor, nn

from serve_app.model.native.denoiser import DenoiserNet
from serve_app.model.native.text_encoder import TextEncoderNet
from serve_app.model.native.tokenizer import Tokenizer
from serve_app.model.training.stages.clips import Clips
from serve_app.model.training.stages.text_encoding import pad_tokens
from serve_app.model.training.world.prompts import training_prompt


class Denoising:
    """Velocity prediction (arXiv 2209.03003) on batches of one length each."""

    name = "denoiser"

    def __init__(
        self,
        module: DenoiserNet,
        text_encoder: TextEncoderNet,
        tokenizer: Tokenizer,
        sets: Mapping[int, Clips],
        *,
        batch: int,
        max_tokens: int,
        noise: NormalDist,
        caption_dropout: float,
        device: str = "cpu",
    ) -> None:
        self.module = module
        self._text_encoder = text_encoder.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._sets = tuple(sets.values())
        self._odds = np.array([len(each.scenes) for each in self._sets]) / sum(len(s.scenes) for s in self._sets)
        self._batch = batch
        self._max_tokens = max_tokens
        self._noise = noise
        self._dropout = caption_dropout
        self._device = device

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, Mapping[str, float]]:
        """Return the mean squared error of the velocity over one batch."""
        latents, context, mask = self._batch_of(self._sets[rng.choice(len(self._sets), p=self._odds)], rng)
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        noise = torch.randn(latents.shape, generator=generator).to(self._device)
        levels = torch.from_numpy(self._levels(rng)).float().to(self._device)
        mixed = torch.lerp(latents, noise, levels[:, None, None, None, None])
        with torch.autocast(self._device, torch.bfloat16):
            velocity = self.module(mixed, levels, context, mask)
        return F.mse_loss(velocity.float(), noise - latents), {}

    def _batch_of(self, clips: Clips, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        latents, scenes = clips.take(rng.integers(len(clips.scenes), size=self._batch))
        prompts = [training_prompt(scene, rng)[0] if rng.random() >= self._dropout else "" for scene in scenes]
        ids, mask = pad_tokens([self._tokens(prompt) for prompt in prompts], self._device)
        with torch.no_grad():
            context = self._text_encoder(ids, mask)
        return latents.to(self._device), context, mask

    def _tokens(self, prompt: str) -> list[int]:
        """Return the prompt's tokens; of a prompt that is longer than serving would take, those of an empty one."""
        tokens = self._tokenizer.tokenize(prompt)
        return tokens if len(tokens) <= self._max_tokens else self._tokenizer.tokenize("")

    def _levels(self, rng: np.random.Generator) -> np.ndarray:
        even = (rng.permutation(self._batch) + rng.random(self._batch)) / self._batch
        logits = np.array([self._noise.inv_cdf(part) for part in even.clip(1e-6, 1 - 1e-6)])
        levels: np.ndarray = 1 / (1 + np.exp(-logits))
        return levels


def initialise(net: DenoiserNet) -> None:
    """Start the blocks as the identity (adaLN-Zero, arXiv 2212.09748 §3.2): gates, and the output, are 0 at first.

    Of each block's own part of the modulation the upper matrix is 0; of the shared part, everything.
    """
    for name, parameter in net.named_parameters():
        shared = name.startswith(("condition.outer", "condition.inner", "condition.at_moment"))
        if shared or name.endswith("adaptive.up.weight") or name.startswith("project_out"):
            nn.init.zeros_(parameter)
