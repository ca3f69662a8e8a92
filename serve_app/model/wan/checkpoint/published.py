"""Wan's published text-to-video models: under which name each is served, where its checkpoint is, how large it is.

Importing it costs nothing, so that every server can name the models it knows, and `encore model` can count one that is
not on this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Dtype = Literal["float32", "bfloat16", "float16"]
"""What transformers and text encoder compute in."""

PUBLISHED = {
    "wan2.2-t2v-5b": "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    "wan2.2-t2v-a14b": "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
    "wan2.1-t2v-1.3b": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "wan2.1-t2v-14b": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
}
"""The repository on the Hugging Face Hub of each model that has a name of its own."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The arguments of a checkpoint's three classes, where they are not the defaults."""

    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]


ARCHITECTURES = {
    "wan2.2-t2v-5b": Architecture(
        transformer={
            "num_layers": 30, "num_attention_heads": 24, "attention_head_dim": 128, "ffn_dim": 14336,
            "in_channels": 48, "out_channels": 48, "patch_size": (1, 2, 2), "text_dim": 4096, "freq_dim": 256,
        },
        vae={
            "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2,
            "temperal_downsample": [False, True, True], "is_residual": True, "in_channels": 12, "out_channels": 12,
            "patch_size": 2, "scale_factor_spatial": 16, "scale_factor_temporal": 4,
        },
        text_encoder={
            "vocab_size": 256_384, "num_layers": 24, "d_model": 4096, "d_ff": 10_240, "num_heads": 64, "d_kv": 64,
            "feed_forward_proj": "gated-gelu",
        },
    ),
}  # fmt: skip
"""The `config.json` files of models that can be counted without their checkpoint."""
