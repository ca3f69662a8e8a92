"""Clips through the autoencoder and back, as the judge's second ceiling: what a perfect denoiser could reach."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from serve_app.model.model import Decoder
from serve_app.model.native.autoencoder import FrameEncoder
from serve_app.model.native.native import NativeFamily
from serve_app.model.native.weights import Checkpoint
from serve_app.model.training.stages.clips import encode

PART = "encoder"


def reconstruction(family: NativeFamily, decoder: Decoder, device: str = "cpu") -> Callable[[Tensor], Tensor] | None:
    """Return a function of one clip, uint8 RGB [num_frames, height, width, 3]; None when the weights lack the encoder.

    Latents pass in half precision, as they do when a video is served.
    """
    if not (isinstance(family.weights, Checkpoint) and family.weights.has(PART)):
        return None
    encoder = FrameEncoder(family.config.autoencoder)
    family.weights.fill(encoder, PART)
    encoder.to(device).eval().requires_grad_(False)
    return lambda clip: torch.from_numpy(decoder.decode(encode(encoder, clip[None])[0]))
