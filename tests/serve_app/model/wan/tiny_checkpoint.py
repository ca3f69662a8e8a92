"""Checkpoints of the classes that Wan's are made of, small enough for tests: seeded weights, a tokenizer made here.

They are written with `save_pretrained`, so what reads them is what reads the published ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

TEXTS = (
    "a cat walks on the grass, realistic style", "A red car drives through Paris at night", "two dogs bake a cake",
    "the camera pans over a mountain lake", "the quick brown fox jumps over the lazy dog", "一只猫在草地上走",
)  # fmt: skip
UNIPC = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0, "solver_order": 2}


@dataclass(frozen=True)
class Kind:
    """What tells Wan's models apart: the autoencoder's compression, the sampler, the number of transformers."""

    spatial: int = 16
    euler: bool = False
    expand_timesteps: bool = True
    boundary_ratio: float | None = None
    seed: int = 0

    @property
    def z_dim(self) -> int:
        return 8 if self.spatial == 16 else 4


TI2V_5B = Kind()
T2V_1_3B = Kind(spatial=8, expand_timesteps=False)
T2V_A14B = Kind(spatial=8, expand_timesteps=False, boundary_ratio=0.875)
EULER = Kind(spatial=8, expand_timesteps=False, euler=True)


def save(folder: Path, kind: Kind = TI2V_5B, **options: Any) -> Path:
    """Write a checkpoint of this kind; `options` are `save_pretrained`'s."""
    two = kind.boundary_ratio is not None
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0) if kind.euler else UniPCMultistepScheduler(**UNIPC)
    WanPipeline(
        tokenizer=_tokenizer(),
        text_encoder=_seeded(_text_encoder(), kind.seed),
        transformer=_seeded(_transformer(kind), kind.seed + 1),
        transformer_2=_seeded(_transformer(kind), kind.seed + 2) if two else None,
        vae=_seeded(_vae(kind), kind.seed + 3),
        scheduler=scheduler,
        boundary_ratio=kind.boundary_ratio,
        expand_timesteps=kind.expand_timesteps,
    ).save_pretrained(folder, **options)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    engine = Tokenizer(models.Unigram())
    engine.normalizer = normalizers.NFKC()
    engine.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=160, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    engine.train_from_iterator(TEXTS, trainer)
    engine.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=engine, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def _text_encoder() -> UMT5EncoderModel:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 2}
    return UMT5EncoderModel(UMT5Config(vocab_size=256, feed_forward_proj="gated-gelu", **sizes))


def _transformer(kind: Kind) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=kind.z_dim,
        out_channels=kind.z_dim,
        text_dim=32,
        freq_dim=16,
        ffn_dim=48,
        num_layers=2,
    )


def _vae(kind: Kind) -> AutoencoderKLWan:
    sizes: dict[str, Any] = {"base_dim": 8, "z_dim": kind.z_dim, "num_res_blocks": 1}
    if kind.spatial == 16:
        sizes |= {"is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2}
        sizes |= {"decoder_base_dim": 8, "scale_factor_spatial": 16}
    statistics = {"latents_mean": [0.1] * kind.z_dim, "latents_std": [1.5] * kind.z_dim}
    return AutoencoderKLWan(dim_mult=[1, 2, 2, 2], **sizes, **statistics)


def _seeded(net: nn.Module, seed: int) -> Any:
    """Draw every parameter, so that no layer is mute: biases of zero would hide a mistake behind them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1 and min(parameter.shape[:2]) > 1:
                parameter.copy_(drawn * parameter[0].numel() ** -0.5)
            else:
                gain = 0.0 if name.endswith(("bias", "table")) else 1.0
                parameter.copy_(gain + 0.1 * drawn)
    return net.eval()
