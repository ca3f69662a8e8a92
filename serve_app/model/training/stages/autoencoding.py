"""Stage one, the autoencoder: frames of the world to latents and back, most of the time on crops around edges."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from einops import rearrange
from torch import Tensor, nn

from serve_app.model.native.autoencoder import FrameDecoder, FrameEncoder
from serve_app.model.native.config import AutoencoderConfig
from serve_app.model.training.recipe import Recipe
from serve_app.model.training.world import world

FRAMES_PER_CLIP = 4


class Autoencoder(nn.Module):
    """The encoder and the decoder together."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.encoder = FrameEncoder(config)
        self.decoder = FrameDecoder(config)


class Autoencoding:
    """Reconstruction by L1 + 3 * MSE with noise on the latents, so that near latents decode to near pictures."""

    name = "autoencoder"

    def __init__(self, module: Autoencoder, recipe: Recipe, *, batch: int, device: str = "cpu") -> None:
        self.module = module
        self._recipe = recipe
        self._batch = batch
        self._device = device
        self._scenes = world.scenes(held_out=False)

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, Mapping[str, float]]:
        """Return the loss of one batch of crops or frames and its PSNR in dB."""
        pixels = self._pixels(rng).to(self._device)
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        with torch.autocast(self._device, torch.bfloat16):
            latents = self.module.encoder(pixels)
            shake = torch.randn(latents.shape, generator=generator).to(latents)
            decoded = self.module.decoder(latents + self._recipe.latent_noise * shake).float()
        mse = F.mse_loss(decoded, pixels)
        return F.l1_loss(decoded, pixels) + 3 * mse, {"psnr": psnr(mse.item())}

    def _pixels(self, rng: np.random.Generator) -> Tensor:
        """Return [n, 3, side, side] in [-1, 1]: many crops or, in as much time, a quarter as many frames."""
        crops = rng.random() < self._recipe.crop_share
        count = self._batch if crops else self._batch // 4
        scenes = [self._scenes[i] for i in rng.integers(len(self._scenes), size=-(-count // FRAMES_PER_CLIP))]
        clips = world.render(scenes, rng)
        picked = rng.permuted(np.tile(np.arange(clips.shape[1]), (len(scenes), 1)), axis=1)[:, :FRAMES_PER_CLIP]
        frames = clips[torch.arange(len(scenes))[:, None], torch.from_numpy(picked)].flatten(0, 1)[:count]
        pixels = to_unit(rearrange(frames, "n h w c -> n c h w"))
        return _around_edges(pixels, self._recipe.crop, rng) if crops else pixels


def to_unit(pixels: Tensor) -> Tensor:
    """Bring uint8 to [-1, 1]."""
    return pixels.float() / 127.5 - 1


def psnr(mse: float) -> float:
    """Return dB for an error over [-1, 1]."""
    return float(10 * np.log10(4 / max(mse, 1e-12)))


def _around_edges(pixels: Tensor, crop: int, rng: np.random.Generator) -> Tensor:
    """Cut one crop per frame with an edge pixel near its middle."""
    side = pixels.shape[-1]
    grey = pixels.mean(dim=1)
    edges = (grey[:, 1:, 1:] - grey[:, :-1, :-1]).abs() > 0.02
    cuts = []
    for frame, edge in zip(pixels, edges, strict=True):
        places = edge.nonzero()
        middle = places[rng.integers(len(places))] if len(places) else torch.tensor([side // 2, side // 2])
        top, left = (middle - crop // 2 + torch.from_numpy(rng.integers(-6, 7, 2))).clamp(0, side - crop).tolist()
        cuts.append(frame[:, top : top + crop, left : left + crop])
    return torch.stack(cuts)
