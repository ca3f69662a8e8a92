"""Wan's causal video autoencoder as the engine's Decoder, and as the ImageEncoder of models that start from an image.

It keeps what it has seen of a video on itself while it works, latent by latent, so it does one thing at a time: the
engine has two threads that may decode when memory is short.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from serve_app.core import Frames, Picture
from serve_app.model.rows import by_itself, laid_out_alike
from serve_app.model.wan.checkpoint.loading import load


class WanDecoder:
    """The autoencoder on one device, in float32 as Wan publishes it.

    batch_invariant: frames and latents are the same to the bit with any number of threads.
    """

    def __init__(
        self, net: AutoencoderKLWan, device: str, *, tiling: bool = False, batch_invariant: bool = False
    ) -> None:
        self._net: Any = net
        self._batch_invariant = batch_invariant
        self._tiling = tiling
        self._device = torch.device(device)
        self._one_at_a_time = threading.Lock()
        self._mean, self._std = (self._statistic(name) for name in ("latents_mean", "latents_std"))

    @classmethod
    def load(cls, folder: Path, device: str, *, tiling: bool = False, batch_invariant: bool = False) -> WanDecoder:
        """Load a checkpoint's `vae`; NotFound when its weights do not fit.

        tiling: decode frames larger than 256 pixels in tiles of that size, 64 of them shared with the next and blended.
        What a tile cannot see beyond its edge (the middle block attends over whole frames) changes pixels.
        """
        net: Any = load(AutoencoderKLWan, folder / "vae", torch.float32, device)
        return cls(net, device, tiling=tiling, batch_invariant=batch_invariant)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Frames:
        """Decode [channels, frames, h, w] to uint8 RGB [1 + 4 * (frames - 1), height, width, 3]."""
        scaled = latents.to(self._device, torch.float32) * self._std + self._mean
        with self._one_at_a_time:
            self._net.use_tiling = self._tiling
            pixels = self._computed(lambda: self._net.decode(laid_out_alike(scaled[None]), return_dict=False)[0])
        shown = (pixels[0] / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        return cast(Frames, shown.permute(1, 2, 3, 0).contiguous().cpu().numpy())

    @torch.inference_mode()
    def encode_image(self, pixels: Picture) -> Tensor:
        """Encode uint8 RGB [height, width, 3] to the latents [channels, 1, h, w] of a video's first frame.

        They are the middle of what the encoder deems possible, as WanImageToVideoPipeline takes it: nothing is drawn.
        """
        image = torch.from_numpy(pixels).to(self._device).permute(2, 0, 1).to(torch.float32) / 255
        with self._one_at_a_time:
            self._net.use_tiling = False  # one frame is small enough, and its latents do not depend on a setting
            video = laid_out_alike((2 * image - 1)[None, :, None])
            latents = self._computed(lambda: self._encoded(video))[0]
        return (latents - self._mean) * (1 / self._std)

    def _encoded(self, video: Tensor) -> Tensor:
        middle: Tensor = self._net.encode(video).latent_dist.mode()
        return middle

    def _computed(self, compute: Callable[[], Tensor]) -> Tensor:
        return by_itself(compute, self._device, in_pieces=True) if self._batch_invariant else compute()

    def _statistic(self, name: str) -> Tensor:
        return torch.tensor(self._net.config[name], device=self._device)[:, None, None, None]
