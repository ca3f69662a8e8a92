"""What the denoiser is told beside the latents: the prompt, the noise level, and the moment of the clip.

Of the prompt it needs the same in every pass, whatever the video and its noise level: a job pays once for the keys and
values of cross-attention and for what its last token, which has read all others, says as a whole. `Prompts` is that
value. It is made of each prompt alone, so that who else is rendered never shows in it, and passes put several together.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from serve_app.model.native.blocks import ConvBlock, VideoBlock, sinusoids
from serve_app.model.native.config import DenoiserConfig

TIMESTEP_CHANNELS = 256
MOMENT_CHANNELS = 32


@dataclass(frozen=True, slots=True, eq=False)
class Prompts:
    """What a denoiser makes of a batch of prompts of up to k tokens, on its device and in its dtype."""

    whole: Tensor
    """[b, inner_channels]"""
    whole_at: Tensor
    """[b, 2 * inner_channels], the prompt's part where prompt and moment meet"""
    key_value: Tensor
    """[b, k, inner_blocks, 2 * inner_channels], the keys and values of each inner block's cross-attention"""
    mask: Tensor
    """[b, k], True where a token is real"""

    @classmethod
    def together(cls, parts: Sequence[Prompts]) -> Prompts:
        """Return the rows of all parts, none of which has padding, in order; no value is read from the device."""
        if len(parts) == 1:
            return parts[0]
        rows = [row for part in parts for row in part.key_value]
        masks = [row for part in parts for row in part.mask]
        return cls(
            whole=torch.cat([part.whole for part in parts]),
            whole_at=torch.cat([part.whole_at for part in parts]),
            key_value=pad_sequence(rows, batch_first=True),
            mask=pad_sequence(masks, batch_first=True),
        )


class Condition(nn.Module):
    """The noise level, the prompt and the moment of the clip as vectors, and from there to a level's modulation.

    What a prompt means for a frame depends on when the frame is ("moves left" is right at first and left in the end),
    so prompt and moment meet in a layer of their own before anything is modulated.
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        dim = config.inner_channels
        self.timestep = nn.Sequential(nn.Linear(TIMESTEP_CHANNELS, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.prompt = nn.Sequential(nn.Linear(config.context_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.moment = nn.Linear(MOMENT_CHANNELS, 2 * dim)
        self.prompt_at = nn.Linear(config.context_dim, 2 * dim)
        self.at_moment = nn.Linear(2 * dim, dim)
        self.outer = nn.Linear(dim, ConvBlock.LAYERS * 3 * config.outer_channels)
        self.inner = nn.Linear(dim, VideoBlock.layers_of(config) * 3 * dim)

    def forward(self, timesteps: Tensor, prompts: Prompts, lengths: Sequence[int]) -> list[Tensor]:
        """Return [b, frames, inner_channels] for each level's number of frames; timesteps [b], from 1 to 0."""
        # Levels in [0, 1] become [0, 1000], the range sinusoids with a longest period of 10,000 resolve well.
        features = sinusoids(timesteps * 1000, TIMESTEP_CHANNELS, 10_000.0).to(prompts.whole.dtype)
        everywhere = (self.timestep(features) + prompts.whole)[:, None]
        return [F.silu(everywhere + self._meeting(prompts.whole_at, frames)) for frames in lengths]

    def _meeting(self, whole_at: Tensor, frames: int) -> Tensor:
        at = self.moment(moments(frames, whole_at.device).to(whole_at.dtype))
        met: Tensor = self.at_moment(F.silu(whole_at[:, None] + at))
        return met


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def moments(frames: int, device: torch.device) -> Tensor:
    """Return [frames, MOMENT_CHANNELS]: where each frame's middle lies in the clip, four turns of a circle to 1/16.

    Cached like `video_positions`, and trainable with for the same reason.
    """
    middles = (torch.arange(frames, device=device) + 0.5) / frames
    return sinusoids(middles * 8 * math.pi, MOMENT_CHANNELS, 64.0)


def last_tokens(context: Tensor, mask: Tensor) -> Tensor:
    """Return [b, c]: each row's last real token of [b, k, c], `mask` [b, k]."""
    return context[torch.arange(len(context), device=context.device), mask.sum(dim=1) - 1]
