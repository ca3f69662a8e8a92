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
from serve_app.model.wan.checkpoint.published import Architecture
from serve_app.model.wan.transformer import Text, key_values, turns_of, velocity

DTYPE = torch.float16
ELSEWHERE = ("text_encoder",)
PROMPT_TOKENS = 128
"""Four long sentences, padding included; the model reads up to 512, and then keeps 190 MB of keys and values a row."""
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
        """Count one pass over `rows` clips (a guided clip is two rows), each with a prompt of its own."""
        net = self._parts["denoiser"]

        def run() -> None:
            latents = torch.empty(rows, *self.latent_shape(frames), dtype=DTYPE)
            texts = [self._text() for _ in range(rows)]
            velocity(net, latents, torch.empty(rows), texts, turns_of(net, latents))

        with FusedAttention():
            return cost(run, net)

    def _text(self) -> Text:
        """Return a prompt as passes keep it."""
        config = self._parts["denoiser"].config
        heads = (config.num_attention_heads, config.attention_head_dim)
        key_value = torch.empty(PROMPT_TOKENS, config.num_layers, 2, *heads, dtype=DTYPE)
        return Text(key_value, torch.empty(PROMPT_TOKENS, dtype=DTYPE))

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
        """Count what one prompt costs once: the text encoder, and its keys and values in every block."""
        encoder, denoiser = self._parts["text_encoder"], self._parts["denoiser"]
        context = torch.empty(PROMPT_TOKENS, denoiser.config.text_dim, dtype=DTYPE, device="meta")
        encoded = cost(lambda: encoder(torch.empty(1, PROMPT_TOKENS, dtype=torch.long)), encoder)
        prepared = cost(lambda: key_values(denoiser, context), denoiser)
        return Cost(
            flops=encoded.flops + prepared.flops,
            attention_flops=encoded.attention_flops + prepared.attention_flops,
            peak_bytes=max(encoded.peak_bytes, prepared.peak_bytes),
            moved_bytes=encoded.moved_bytes + prepared.moved_bytes,
        )

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
        """Replace scaled_dot_product_attention, whose mask costs nothing; let everything else be."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key, value = (*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :]))[:3]
            return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        return func(*args, **kwargs)
