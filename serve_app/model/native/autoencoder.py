"""The per-frame autoencoder: 64x64 pixels to 8 channels of 8x8 and back. Serving loads the decoder alone.

Frames are coded one by one, so any number of them decodes and time is the denoiser's business. Norms run over the
channels of one position (a channel LayerNorm, not a GroupNorm): statistics over a whole frame would tie a corner's
brightness to the middle and behave differently at every size.
"""

from __future__ import annotations

from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from serve_app.core import Frames
from serve_app.model.native.config import AutoencoderConfig


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of [n, c, h, w], position by position."""

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        return rearrange(super().forward(rearrange(x, "n c h w -> n h w c")), "n h w c -> n c h w")


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a skip."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ChannelLayerNorm(dim),
            nn.SiLU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            ChannelLayerNorm(dim),
            nn.SiLU(),
            nn.Conv2d(dim, dim, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape [n, c, h, w]."""
        return cast(Tensor, x + self.layers(x))


class FrameEncoder(nn.Module):
    """Pixels to the mean and log-variance of latents; training needs it, serving does not."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        first, *deeper = config.channels
        layers: list[nn.Module] = [nn.Conv2d(3, first, 3, padding=1), ResidualBlock(first)]
        for dim in deeper:
            layers += [nn.Conv2d(first, dim, 3, stride=2, padding=1), ResidualBlock(dim)]
            first = dim
        layers += [ChannelLayerNorm(first), nn.SiLU(), nn.Conv2d(first, 2 * config.latent_channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return (mean, log-variance), each [n, latent_channels, h/8, w/8], for pixels [n, 3, h, w] in [-1, 1]."""
        mean, log_variance = self.layers(pixels.contiguous(memory_format=torch.channels_last)).chunk(2, dim=1)
        return mean, log_variance


class FrameDecoder(nn.Module):
    """Latents to pixels. `latent_mean` and `latent_std` say how the encoder's latents were brought to unit scale."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        *shallower, last = config.channels
        layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, last, 3, padding=1), ResidualBlock(last)]
        for dim in reversed(shallower):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(last, dim, 3, padding=1), ResidualBlock(dim)]
            last = dim
        layers += [ChannelLayerNorm(last), nn.SiLU(), nn.Conv2d(last, 3, 3, padding=1)]
        self.layers = nn.Sequential(*layers)
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(config.latent_channels, 1, 1))

    def forward(self, latents: Tensor) -> Tensor:
        """Return pixels [n, 3, 8h, 8w], nominally in [-1, 1], for unit-scale latents [n, c, h, w]."""
        latents = latents * self.latent_std + self.latent_mean
        return cast(Tensor, self.layers(latents.contiguous(memory_format=torch.channels_last)))


class NativeDecoder:
    """The frame decoder as the engine's Decoder, on one device."""

    def __init__(self, net: FrameDecoder, dtype: torch.dtype, device: str) -> None:
        self._net = net.to(device, dtype).eval().requires_grad_(False)
        self._dtype = dtype
        self._device = device

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Frames:
        """Decode [channels, frames, h, w] to uint8 RGB [frames, 8h, 8w, 3]."""
        per_frame = rearrange(latents, "c f h w -> f c h w").to(self._device, self._dtype)
        pixels = self._net(per_frame).float()
        scaled = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return cast(Frames, rearrange(scaled, "f c h w -> f h w c").contiguous().cpu().numpy())
