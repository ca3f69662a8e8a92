"""What a preset weighs and computes, counted on meta tensors by the very classes that serve; nothing is allocated.

Attention counts written out, with its scores in memory: with attention over space and time apart these are small, but
it makes the peak an upper bound for a fused kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from serve_app.model.counting import between, cost
from serve_app.model.native.autoencoder import FrameDecoder, FrameEncoder
from serve_app.model.native.blocks import video_positions
from serve_app.model.native.condition import moments
from serve_app.model.native.config import NativeConfig
from serve_app.model.native.denoiser import DenoiserNet
from serve_app.model.native.text_encoder import TextEncoderNet
from serve_app.model.roofline import Cost, Work

DTYPE = torch.float16


class Sizing:
    """The four networks of a preset on the meta device."""

    def __init__(self, config: NativeConfig) -> None:
        self.config = config
        with torch.device("meta"):
            self.parts: dict[str, nn.Module] = {
                "text_encoder": TextEncoderNet(config.text_encoder),
                "denoiser": DenoiserNet(config.denoiser),
                "encoder": FrameEncoder(config.autoencoder),
                "decoder": FrameDecoder(config.autoencoder),
            }
        for net in self.parts.values():
            net.to(DTYPE).eval().requires_grad_(False)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a clip in pixels."""
        return self.config.width, self.config.height

    def parameters(self) -> dict[str, int]:
        """Count the parameters of each part."""
        return {name: sum(each.numel() for each in net.parameters()) for name, net in self.parts.items()}

    def latent_shape(self, frames: int) -> tuple[int, int, int, int]:
        """Return [channels, frames, height, width] of one clip's latents."""
        downscale = self.config.autoencoder.downscale
        channels = self.config.denoiser.latent_channels
        return channels, frames, self.config.height // downscale, self.config.width // downscale

    def tokens(self, frames: int) -> int:
        """Count the places of the denoiser's inner level for one clip."""
        _, _, height, width = self.latent_shape(frames)
        return -(-frames // self.config.denoiser.frame_stride) * (height // 2) * (width // 2)

    def denoise(self, frames: int, rows: int) -> Cost:
        """Count one pass over `rows` clips (a guided clip is two rows), each with a prompt of full length."""
        shape = self.latent_shape(frames)
        length = self.config.text_encoder.max_tokens
        video_positions.cache_clear()  # they lie in memory too, so the peak shall see them made
        moments.cache_clear()

        def run() -> None:
            context = torch.empty(rows, length, self.config.denoiser.context_dim, dtype=DTYPE)
            mask = torch.ones(rows, length, dtype=torch.bool)
            self.parts["denoiser"](torch.empty(rows, *shape, dtype=DTYPE), torch.empty(rows), context, mask)

        return cost(run, self.parts["denoiser"])

    def decode(self, frames: int) -> Cost:
        """Count decoding one clip, all frames at once as the engine does."""
        channels, _, height, width = self.latent_shape(frames)
        latents = (frames, channels, height, width)
        return cost(lambda: self.parts["decoder"](torch.empty(latents, dtype=DTYPE)), self.parts["decoder"])

    def encode_prompt(self) -> Cost:
        """Count encoding one prompt of full length."""
        tokens = (1, self.config.text_encoder.max_tokens)
        return cost(
            lambda: self.parts["text_encoder"](torch.empty(tokens, dtype=torch.long)), self.parts["text_encoder"]
        )

    def works(self, frames: int, batches: Sequence[int]) -> list[Work]:
        """Return the guided batches of clips of one length.

        Only the smallest and the largest are counted: what a pass costs is a straight line over its rows.
        """
        few, many = min(batches), max(batches)
        ends = {batch: self.denoise(frames, 2 * batch) for batch in {few, many}}
        decode, encode_prompt, parameters = self.decode(frames), self.encode_prompt(), self.parameters()
        return [Work(frames, batch, between(ends, batch), decode, encode_prompt, parameters) for batch in batches]
