"""The latent denoiser: predicts the flow velocity of a batch of videos, whatever step each of them is at.

Two levels: a few factorised convolutions at the latents' own resolution keep edges sharp, and at half of it, where
a token costs a quarter, blocks with all the attention do the thinking. Every row of a batch is computed
independently, so a job's answer does not depend on who shares its pass (to rounding).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from serve_app.core import VideoSpec
from serve_app.model.native.blocks import ConvBlock, VideoBlock, sinusoids, video_positions
from serve_app.model.native.config import DenoiserConfig, NativeConfig

TIMESTEP_CHANNELS = 256


class TimestepEmbedding(nn.Module):
    """Noise levels to conditioning vectors, and from there to each level's shared modulation."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        dim = config.inner_channels
        self.mlp = nn.Sequential(nn.Linear(TIMESTEP_CHANNELS, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())
        self.outer = nn.Linear(dim, ConvBlock.LAYERS * 3 * config.outer_channels)
        self.inner = nn.Linear(dim, VideoBlock.LAYERS * 3 * config.inner_channels)

    def forward(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the modulations of the outer and the inner level, each [b, layers * 3 * channels]."""
        # Levels in [0, 1] become [0, 1000], the range sinusoids with a longest period of 10,000 resolve well.
        features = sinusoids(timesteps * 1000, TIMESTEP_CHANNELS, 10_000.0)
        hidden = self.mlp(features.to(self.outer.weight.dtype))
        return self.outer(hidden), self.inner(hidden)


class DenoiserNet(nn.Module):
    """The network itself; latent height and width must be even."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        outer, inner = config.outer_channels, config.inner_channels
        self.timestep = TimestepEmbedding(config)
        self.project_in = nn.Linear(config.latent_channels, outer)
        self.entry = nn.ModuleList(ConvBlock(outer) for _ in range(config.outer_blocks))
        self.down = nn.Linear(4 * outer, inner)
        self.trunk = nn.ModuleList(
            VideoBlock(inner, config.num_heads, config.mlp_ratio, config.context_dim)
            for _ in range(config.inner_blocks)
        )
        self.up = nn.Linear(inner, 4 * outer)
        self.merge = nn.Linear(2 * outer, outer)
        self.exit = nn.ModuleList(ConvBlock(outer) for _ in range(config.outer_blocks))
        self.norm = nn.LayerNorm(outer)
        self.project_out = nn.Linear(outer, config.latent_channels)

    def forward(self, latents: Tensor, timesteps: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """Return the velocity, latents' shape [b, c, f, h, w]; context [b, k, context_dim], mask [b, k]."""
        for_outer, for_inner = self.timestep(timesteps)
        x = self.project_in(rearrange(latents, "b c f h w -> b f h w c"))
        outer_positions = _positions_of(x)
        for block in self.entry:
            x = block(x, for_outer, outer_positions)
        x = self.merge(torch.cat([x, self._think(x, for_inner, context, mask)], dim=-1))
        for block in self.exit:
            x = block(x, for_outer, outer_positions)
        return cast(Tensor, rearrange(self.project_out(self.norm(x)), "b f h w c -> b c f h w"))

    def _think(self, x: Tensor, modulation: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        x = self.down(rearrange(x, "b f (h p) (w q) c -> b f h w (p q c)", p=2, q=2))
        positions = _positions_of(x)
        for block in self.trunk:
            x = block(x, modulation, positions, context, mask)
        return cast(Tensor, rearrange(self.up(x), "b f h w (p q c) -> b f (h p) (w q) c", p=2, q=2))


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
