"""What a published Wan model weighs and computes, counted on meta tensors by the classes that serve it.

Attention counts as the fused kernel that serves: written out, the scores of 81 frames alone would take gigabytes. The
text encoder is counted as being elsewhere, on another card or a CPU: beside the 5B it would weigh more than all else.
The decoder counts in half precision like everything here; it is served in float32, which takes twice its bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import UMT5Config, UMT5EncoderModel

from serve_app.model.counting import between, cost
from serve_app.model.roofline import Cost, Work
from serve_app.model.wan.published import Architecture
from serve_app.model.wan.tokenizer import MAX_TOKENS

DTYPE = torch.float16
ELSEWHERE = ("text_encoder",)
_COUNTED = (4, 5)
"""Latents whose decoding is counted; from the second one on each costs the same."""


class WanSizing:
    """The parts of one architecture on the meta device, for clips of `size` (width, height) pixels."""

    def __init__(self, architecture: Architecture, size: tuple[int, int] = (640, 480)) -> None:
        self.size = size
        self._vae_config = architecture.vae
        z_dim = architecture.vae["z_dim"]
        with torch.device("meta"):
            vae = AutoencoderKLWan(**architecture.vae, latents_mean=[0.0] * z_dim, latents_std=[1.0] * z_dim)
            self._parts: dict[str, Any] = {
                "text_encoder": UMT5EncoderModel(UMT5Config(**architecture.text_encoder)),
                "denoiser": WanTransformer3DModel(**architecture.transformer),
                "encoder": nn.ModuleList([vae.encoder, vae.quant_conv]),
                "decoder": nn.ModuleList([vae.decoder, vae.post_quant_conv]),
            }
        self._vae = vae
        for net in (*self._parts.values(), vae):
            nn.Module.to(net, DTYPE).eval().requires_grad_(False)

    def parameters(self) -> dict[str, int]:
        """Count the parameters of each part."""
        return {name: sum(each.numel() for each in net.parameters()) for name, net in self._parts.items()}

    def latent_shape(self, frames: int) -> tuple[int, int, int, int]:
        """Return [channels, frames, height, width] of one clip's latents."""
        width, height = (side // self._vae_config["scale_factor_spatial"] for side in self.size)
        return self._vae_config["z_dim"], (frames - 1) // self._vae_config["scale_factor_temporal"] + 1, height, width

    def tokens(self, frames: int) -> int:
        """Count the transformer's tokens for one clip."""
        _, count, height, width = self.latent_shape(frames)
        p_t, p_h, p_w = self._parts["denoiser"].config.patch_size
        return int(count // p_t * (height // p_h) * (width // p_w))

    def denoise(self, frames: int, rows: int) -> Cost:
        """Count one pass over `rows` clips (a guided clip is two rows), the text as long as the pipeline pads it."""
        net = self._parts["denoiser"]
        text_dim = net.config.text_dim

        def run() -> None:
            latents = torch.empty(rows, *self.latent_shape(frames), dtype=DTYPE)
            context = torch.empty(rows, MAX_TOKENS, text_dim, dtype=DTYPE)
            net(hidden_states=latents, timestep=torch.empty(rows), encoder_hidden_states=context, return_dict=False)

        with FusedAttention():
            return cost(run, net)

    def decode(self, frames: int) -> Cost:
        """Count decoding one clip latent by latent, as the autoencoder does."""
        return between(self._decodes, self.latent_shape(frames)[1])

    @functools.cached_property
    def _decodes(self) -> dict[int, Cost]:
        channels, _, height, width = self.latent_shape(1)

        def run(count: int) -> None:
            self._vae.decode(torch.empty(1, channels, count, height, width, dtype=DTYPE), return_dict=False)

        with FusedAttention():
            return {count: cost(functools.partial(run, count), self._vae) for count in _COUNTED}

    def encode_prompt(self) -> Cost:
        """Count encoding one prompt of full length."""
        net = self._parts["text_encoder"]
        return cost(lambda: net(torch.empty(1, MAX_TOKENS, dtype=torch.long)), net)

    def works(self, frames: int, batches: Sequence[int]) -> list[Work]:
        """Return the guided batches of clips of one length; what lies between the smallest and largest is a line."""
        ends = {batch: self.denoise(frames, 2 * batch) for batch in {min(batches), max(batches)}}
        decode, encode_prompt, parameters = self.decode(frames), self._encode_prompt, self.parameters()
        return [
            Work(frames, batch, between(ends, batch), decode, encode_prompt, parameters, elsewhere=ELSEWHERE)
            for batch in batches
        ]

    @functools.cached_property
    def _encode_prompt(self) -> Cost:
        return self.encode_prompt()


class FusedAttention(TorchFunctionMode):
    """Counts attention as the flash kernel's one op, which keeps no scores, whatever the device would choose."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace scaled_dot_product_attention without a mask; let everything else be."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and kwargs.get("attn_mask") is None:
            query, key, value = (*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :]))[:3]
            return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        return func(*args, **kwargs)
