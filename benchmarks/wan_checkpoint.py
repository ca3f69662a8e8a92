"""A random Wan checkpoint of more than 100 M weights, of the classes and proportions that Wan2.2-TI2V-5B has.

Written with `save_pretrained`, so both sides read it as they would read the published one. Width, depth and vocabulary
are smaller, ratios are kept: heads of 128, feed-forward 14/3 of the width, a residual autoencoder of the 2.2 kind with
its compression of 16 x 16 x 4. The published decoder computes as much as 3.5 guided passes (`encore model`), 7 % of a
video's 50 steps; the benchmark has 4 steps, so its decoder is narrow enough to be a sixth of those. Any narrower, and
torch on a CPU would take a slow way through its convolutions that the published one's widths never meet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

PROMPTS = (
    "a cat walks on the grass in the rain, realistic style, soft light, the camera follows it slowly from behind",
    "a red car drives through Paris at night while neon signs are mirrored on the wet street",
    "two dogs bake a cake in a sunny kitchen, one of them wears an apron, flour is everywhere",
    "the camera pans over a mountain lake at sunrise, fog lies on the water, birds fly by",
    "the quick brown fox jumps over the lazy dog in slow motion, golden autumn leaves fall",
    "waves break on black sand below steep green cliffs, seen from a drone that flies backwards",
    "an old fisherman mends his net on a wooden pier, close-up of his hands, shallow depth of field",
    "a paper boat floats down a rain gutter past city feet, low angle, handheld camera",
)
NEGATIVE = "blurred details, static, overexposed, low quality, watermark, deformed hands, subtitles"
Z_DIM, TEXT_DIM = 48, 512


def save(folder: Path) -> int:
    """Write the checkpoint and return how many weights it has."""
    nets = {
        "text_encoder": UMT5EncoderModel(
            UMT5Config(
                vocab_size=4096, d_model=TEXT_DIM, d_kv=64, d_ff=1280, num_heads=8, num_layers=4,
                feed_forward_proj="gated-gelu",
            )
        ),
        "transformer": WanTransformer3DModel(
            num_attention_heads=6, attention_head_dim=128, ffn_dim=3584, num_layers=9, in_channels=Z_DIM,
            out_channels=Z_DIM, text_dim=TEXT_DIM, freq_dim=256,
        ),
        "vae": AutoencoderKLWan(
            base_dim=16, decoder_base_dim=16, z_dim=Z_DIM, dim_mult=[1, 2, 4, 4], num_res_blocks=2, is_residual=True,
            temperal_downsample=[False, True, True], in_channels=12, out_channels=12, patch_size=2,
            scale_factor_spatial=16, latents_mean=[0.1] * Z_DIM, latents_std=[1.5] * Z_DIM,
        ),
    }  # fmt: skip
    pipeline = WanPipeline(
        tokenizer=_tokenizer(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
        expand_timesteps=True,
        **{name: _seeded(net, seed) for seed, (name, net) in enumerate(nets.items())},
    )
    pipeline.save_pretrained(folder)
    return sum(each.numel() for net in nets.values() for each in net.parameters())


def _tokenizer() -> PreTrainedTokenizerFast:
    engine = Tokenizer(models.Unigram())
    engine.normalizer = normalizers.NFKC()
    engine.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    engine.train_from_iterator([*PROMPTS, NEGATIVE], trainer)
    engine.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=engine, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


@torch.no_grad()
def _seeded(net: nn.Module, seed: int) -> Any:
    """Draw every weight at the scale that keeps activations near one, whatever the classes' own start is."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in net.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1 and min(parameter.shape[:2]) > 1:
            parameter.copy_(drawn * parameter[0].numel() ** -0.5)
        else:
            parameter.copy_((0.0 if name.endswith(("bias", "table")) else 1.0) + 0.1 * drawn)
    return net.eval()
