"""The per-frame autoencoder: 64x64 pixels to 8 channels of 8x8 and back. Serving loads the decoder alone.

Frames are coded one by one, so any number of them decodes and time is the denoiser's business. Norms run over the
channels of one position (a channel LayerNorm, not a GroupNorm): statistics over a whole frame would tie a corner's
brightness to the middle and behave differently at every size. It is a variational autoencoder whose posterior has one
fixed deviation: latents leave the encoder at unit scale, and training adds noise of that deviation before decoding.
Pixels are folded into channels at the outer end (`patch`), because convolutions at full resolution cost most.
"""

from __future__ import annotations

from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from serve_app.core import Frames
from serve_app.model.native.config import AutoencoderConfig
from serve_app.model.native.lanes import in_lanes
from serve_app.model.rows import each_alone, laid_out_alike


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
            _conv(dim, dim),
            ChannelLayerNorm(dim),
            nn.SiLU(),
            _conv(dim, dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape [n, c, h, w]."""
        return cast(Tensor, x + self.layers(x))


class FrameEncoder(nn.Module):
    """Pixels to latents of zero mean and unit variance per channel; training needs it, serving does not."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.latent_channels = config.latent_channels
        self.downscale = config.downscale
        first, *deeper = config.channels
        layers: list[nn.Module] = [nn.PixelUnshuffle(config.patch), _conv(3 * config.patch**2, first)]
        layers.append(ResidualBlock(first))
        for dim in deeper:
            layers += [nn.Conv2d(first, dim, 3, stride=2, padding=1), ResidualBlock(dim)]
            first = dim
        layers += [ChannelLayerNorm(first), nn.SiLU(), _conv(first, config.latent_channels)]
        self.layers = nn.Sequential(*layers)
        self.standardise = nn.BatchNorm2d(config.latent_channels, affine=False, momentum=0.01)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return [n, latent_channels, h/8, w/8] for pixels [n, 3, h, w] in [-1, 1]."""
        return cast(Tensor, self.standardise(self.layers(pixels.contiguous(memory_format=torch.channels_last))))


class FrameDecoder(nn.Module):
    """Latents to pixels."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        *shallower, last = config.channels
        layers: list[nn.Module] = [_conv(config.latent_channels, last), ResidualBlock(last)]
        for dim in reversed(shallower):
            layers += [nn.Upsample(scale_factor=2), _conv(last, dim), ResidualBlock(dim)]
            last = dim
        layers += [ChannelLayerNorm(last), nn.SiLU(), _conv(last, 3 * config.patch**2), nn.PixelShuffle(config.patch)]
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        """Return pixels [n, 3, 8h, 8w], nominally in [-1, 1], for unit-scale latents [n, c, h, w]."""
        return cast(Tensor, self.layers(latents.contiguous(memory_format=torch.channels_last)))


def _conv(dim_in: int, dim_out: int) -> nn.Conv2d:
    return nn.Conv2d(dim_in, dim_out, 3, padding=1)


class NativeDecoder:
    """The frame decoder as the engine's Decoder, on one device; batch_invariant: every frame is decoded by itself."""

    def __init__(self, net: FrameDecoder, dtype: torch.dtype, device: str, *, batch_invariant: bool = False) -> None:
        self._net = net.to(device, dtype).eval().requires_grad_(False)
        self._dtype = dtype
        self._device = torch.device(device)
        self._batch_invariant = batch_invariant

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Frames:
        """Decode [channels, frames, h, w] to uint8 RGB [frames, 8h, 8w, 3]."""
        per_frame = rearrange(latents, "c f h w -> f c h w").to(self._device, self._dtype)
        if self._batch_invariant:
            decoded = torch.cat(each_alone(lambda frame: self._alone(per_frame, frame), len(per_frame), self._device))
        else:
            decoded = in_lanes(lambda frames: self._rgb(per_frame[frames]), len(per_frame), self._device)
        return cast(Frames, decoded.cpu().numpy())

    def _alone(self, per_frame: Tensor, frame: int) -> Tensor:
        return self._rgb(laid_out_alike(per_frame[frame : frame + 1]))

    def _rgb(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self._net(latents).float()
        scaled = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return rearrange(scaled, "f c h w -> f h w c").contiguous()
