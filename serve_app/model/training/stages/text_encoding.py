"""Stage two, the text encoder: what prompts mean, learnt by contrast before any video is made.

Two prompts for one scene (in any template and language) must lie near each other and far from the rest of the batch
(InfoNCE, as in CLIP, arXiv 2103.00020), and each must lie nearest to the right value of every attribute, "not said"
among the values. In a trial the text encoder was the bottleneck of the whole model when it was trained from pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from serve_app.model.native.condition import last_tokens
from serve_app.model.native.config import TextEncoderConfig
from serve_app.model.native.text_encoder import TextEncoderNet
from serve_app.model.native.tokenizer import Tokenizer
from serve_app.model.training.world.prompts import training_prompt
from serve_app.model.training.world.world import ATTRIBUTES, Scene, scenes


class Reader(nn.Module):
    """The text encoder with what only its training needs: a point for each value of each attribute."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.text_encoder = TextEncoderNet(config)
        self.text_encoder.clip.set_attn_implementation("eager")  # a step takes 2.5 times as long with the fused one
        self.values = nn.ModuleDict(
            {name: nn.Linear(config.context_dim, len(values) + 1) for name, values in ATTRIBUTES.items()}
        )
        self.temperature = nn.Parameter(torch.tensor(10.0).log())

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the last real token's context, [b, context_dim]."""
        context = self.text_encoder(input_ids, mask)
        return last_tokens(context, mask)


class Reading:
    """Contrast of paired prompts and of prompts with attribute values."""

    name = "text_encoder"

    def __init__(self, module: Reader, tokenizer: Tokenizer, *, batch: int, device: str = "cpu") -> None:
        self.module = module
        self._tokenizer = tokenizer
        self._batch = batch
        self._device = device
        self._scenes = scenes(held_out=False)

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, Mapping[str, float]]:
        """Return the loss of one batch and the share of prompts of which every attribute was read rightly."""
        drawn = [self._scenes[i] for i in rng.integers(len(self._scenes), size=self._batch)]
        prompts, said = zip(*(training_prompt(scene, rng) for scene in (*drawn, *drawn)), strict=True)
        with torch.autocast(self._device, torch.bfloat16):
            pooled = self.module(*self.padded(prompts))
            logits = {name: head(pooled).float() for name, head in self.module.values.items()}
        targets = values_of(said).to(self._device)
        named = [F.cross_entropy(logits[name], targets[:, i]) for i, name in enumerate(ATTRIBUTES)]
        right = torch.stack([logits[name].argmax(-1) == targets[:, i] for i, name in enumerate(ATTRIBUTES)])
        loss = self._contrast(pooled.float(), targets) + torch.stack(named).sum()
        return loss, {"read": right.all(0).float().mean().item()}

    def padded(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return token ids [b, k] and their mask."""
        return pad_tokens([self._tokenizer.tokenize(prompt) for prompt in prompts], self._device)

    def _contrast(self, pooled: Tensor, targets: Tensor) -> Tensor:
        """Return InfoNCE between the two prompts of each scene, where both say all of it."""
        whole = (targets > 0).all(dim=1).view(2, -1).all(dim=0)
        points = F.normalize(pooled, dim=-1)
        first, second = (half[whole] for half in points.chunk(2))
        logits = self.module.temperature.exp() * first @ second.T
        values = targets.chunk(2)[0][whole]
        same = (values[:, None] == values[None]).all(dim=-1).float()
        goal = same / same.sum(dim=1, keepdim=True)
        return (F.cross_entropy(logits, goal) + F.cross_entropy(logits.T, goal)) / 2


def pad_tokens(tokens: Sequence[Sequence[int]], device: str) -> tuple[Tensor, Tensor]:
    """Return ids [b, k], padded with 0, and the mask of the real ones."""
    ids = pad_sequence([torch.tensor(each) for each in tokens], batch_first=True)
    lengths = torch.tensor([len(each) for each in tokens])
    return ids.to(device), (torch.arange(ids.shape[1]) < lengths[:, None]).to(device)


def values_of(said: Sequence[Scene]) -> Tensor:
    """Return [n, attributes]: 0 where an attribute was not said, else 1 + the index of its value."""
    rows = [
        [
            0 if value is None else 1 + names.index(value)
            for names, value in zip(ATTRIBUTES.values(), astuple(scene), strict=True)
        ]
        for scene in said
    ]
    return torch.tensor(rows)
