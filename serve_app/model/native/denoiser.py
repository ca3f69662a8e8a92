"""The latent denoiser: predicts the flow velocity of a batch of videos, whatever step each of them is at.

Two levels: a few factorised convolutions at the latents' own resolution keep edges sharp, and at half of it, in time
too, where there are an eighth as many tokens, blocks with all the attention do the thinking. The prompt speaks twice:
word by word through cross-attention, and as a whole through its last token, which conditions every norm like the
timestep does. Every row of a batch is computed independently, so a job's answer does not depend on who shares its pass
(to rounding).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from serve_app.core import VideoSpec
from serve_app.model.native.blocks import ConvBlock, VideoBlock, sinusoids, video_positions
from serve_app.model.native.config import DenoiserConfig, NativeConfig

TIMESTEP_CHANNELS = 256
MOMENT_CHANNELS = 32


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

    def forward(self, timesteps: Tensor, pooled: Tensor, frames: int) -> Tensor:
        """Return [b, frames, inner_channels].

        timesteps [b], from 1 to 0; pooled [b, context_dim], the prompt's last token, which has read all others.
        """
        # Levels in [0, 1] become [0, 1000], the range sinusoids with a longest period of 10,000 resolve well.
        features = sinusoids(timesteps * 1000, TIMESTEP_CHANNELS, 10_000.0).to(pooled.dtype)
        moments = _moments(frames, pooled.device).to(pooled.dtype)
        meeting = self.at_moment(F.silu(self.prompt_at(pooled)[:, None] + self.moment(moments)))
        return F.silu((self.timestep(features) + self.prompt(pooled))[:, None] + meeting)


def _moments(frames: int, device: torch.device) -> Tensor:
    """Return [frames, MOMENT_CHANNELS]: where each frame's middle lies in the clip, four turns of a circle to 1/16."""
    middles = (torch.arange(frames, device=device) + 0.5) / frames
    return sinusoids(middles * 8 * math.pi, MOMENT_CHANNELS, 64.0)


class DenoiserNet(nn.Module):
    """The network itself; latent height and width must be even, any number of frames will do."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        outer, inner = config.outer_channels, config.inner_channels
        self.stride = config.frame_stride
        folded = config.frame_stride * 4 * outer
        self.condition = Condition(config)
        self.project_in = nn.Linear(config.latent_channels, outer)
        self.entry = nn.ModuleList(ConvBlock(config) for _ in range(config.outer_blocks))
        self.down = nn.Linear(folded, inner)
        self.trunk = nn.ModuleList(VideoBlock(config) for _ in range(config.inner_blocks))
        self.up = nn.Linear(inner, folded)
        self.merge = nn.Linear(2 * outer, outer)
        self.exit = nn.ModuleList(ConvBlock(config) for _ in range(config.outer_blocks))
        self.norm = nn.LayerNorm(outer)
        self.project_out = nn.Linear(outer, config.latent_channels)

    def forward(self, latents: Tensor, timesteps: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """Return the velocity, latents' shape [b, c, f, h, w]; context [b, k, context_dim], mask [b, k]."""
        pooled = context[torch.arange(len(context)), mask.sum(dim=1) - 1]
        condition = self.condition(timesteps, pooled, latents.shape[2])
        shared = self.condition.outer(condition)
        x = self.project_in(rearrange(latents, "b c f h w -> b f h w c")).to(self.norm.weight)
        positions = _positions_of(x)
        for block in self.entry:
            x = block(x, condition, shared, positions)
        thought = self._think(x, timesteps, pooled, context, mask)
        x = self.merge(torch.cat([x, thought.to(x.dtype)], dim=-1)).to(x.dtype)
        for block in self.exit:
            x = block(x, condition, shared, positions)
        return cast(Tensor, rearrange(self.project_out(self.norm(x)), "b f h w c -> b c f h w"))

    def _think(self, x: Tensor, timesteps: Tensor, pooled: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        frames = x.shape[1]
        missing = -frames % self.stride
        x = torch.cat([x, x[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1) if missing else x
        x = self.down(rearrange(x, f"b (f s) (h p) (w q) c -> {_FOLDED}", s=self.stride, p=2, q=2)).to(x.dtype)
        positions = _positions_of(x)
        condition = self.condition(timesteps, pooled, x.shape[1])
        shared = self.condition.inner(condition)
        for block in self.trunk:
            x = block(x, condition, shared, positions, context, mask)
        unfolded = rearrange(self.up(x), f"{_FOLDED} -> b (f s) (h p) (w q) c", s=self.stride, p=2, q=2)
        return cast(Tensor, unfolded[:, :frames])


_FOLDED = "b f h w (s p q c)"


def _positions_of(x: Tensor) -> Tensor:
    _, frames, height, width, channels = x.shape
    return video_positions(frames, height, width, channels, x.device).to(x.dtype)


class NativeDenoiser:
    """The network as the engine's Denoiser, on one device."""

    def __init__(self, net: DenoiserNet, config: NativeConfig, device: str) -> None:
        self._dtype = getattr(torch, config.dtype)
        self._net = net.to(device, self._dtype).eval().requires_grad_(False)
        self._config = config
        self._device = device

    @property
    def sampler_shift(self) -> float:
        """The timestep shift the preset is sampled with."""
        return self._config.sampler_shift

    def latent_shape(self, spec: VideoSpec) -> tuple[int, int, int, int]:
        """Return [channels, frames, height, width]: the autoencoder works frame by frame."""
        downscale = self._config.autoencoder.downscale
        channels = self._config.denoiser.latent_channels
        return channels, spec.num_frames, spec.height // downscale, spec.width // downscale

    @torch.inference_mode()
    def predict(self, latents: Tensor, timesteps: Tensor, context: Sequence[Tensor]) -> Tensor:
        """Predict the velocity in float32 on this device; inputs may be on any."""
        lengths = torch.tensor([len(tokens) for tokens in context])
        padded = pad_sequence(list(context), batch_first=True).to(self._device, self._dtype)
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).to(self._device)
        noise_pred = self._net(latents.to(self._device, self._dtype), timesteps.to(self._device), padded, mask)
        return cast(Tensor, noise_pred.float())
