"""What a Wan model weighs and computes: the 5B is the published one, and the counts agree with real passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from serve_app.model.wan.checkpoint.published import ARCHITECTURES, PUBLISHED, Architecture
from serve_app.model.wan.sizing import PROMPT_TOKENS, WanSizing
from serve_app.model.wan.transformer import Text, key_values, turns_of, velocity

TINY = Architecture(
    transformer={
        "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 48, "in_channels": 8,
        "out_channels": 8, "text_dim": 32, "freq_dim": 16, "patch_size": (1, 2, 2),
    },
    vae={
        "base_dim": 8, "decoder_base_dim": 8, "z_dim": 8, "num_res_blocks": 1, "dim_mult": [1, 2, 2, 2],
        "is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16,
        "scale_factor_temporal": 4,
    },
    text_encoder={"vocab_size": 64, "num_layers": 2, "d_model": 32, "d_ff": 64, "num_heads": 4, "d_kv": 8},
)  # fmt: skip


@pytest.fixture(scope="module")
def five_b() -> WanSizing:
    return WanSizing(ARCHITECTURES["wan2.2-t2v-5b"])


@pytest.fixture(scope="module")
def tiny() -> WanSizing:
    return WanSizing(TINY, size=(96, 64))


def counted(run: Any) -> int:
    written_out = sdpa_kernel(SDPBackend.MATH)  # the counter knows no kernel of a CPU's
    with torch.no_grad(), written_out, FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def test_the_5b_has_as_many_weights_as_the_published_files(five_b: WanSizing) -> None:
    """5.00, 5.68 and 0.705 thousand million: the sizes of the transformer, of UMT5-XXL's encoder and of the VAE."""
    assert ARCHITECTURES.keys() <= PUBLISHED.keys()
    parts = five_b.parameters()
    assert (parts["denoiser"], parts["text_encoder"]) == (4_999_787_712, 5_680_910_336)
    assert parts["encoder"] + parts["decoder"] == 704_688_668


def test_its_grid(five_b: WanSizing) -> None:
    """640x480 is 30x40 latents of 48 channels; 17 frames are five of them, and 81 are 21."""
    assert five_b.latent_shape(17) == (48, 5, 30, 40)
    assert five_b.latent_shape(81) == (48, 21, 30, 40)
    assert (five_b.tokens(17), five_b.tokens(81)) == (1500, 6300)


def test_most_of_a_pass_is_two_flops_a_weight_and_token(five_b: WanSizing) -> None:
    """Without attention a pass costs 2 x weights x tokens, of those weights that tokens go through in every pass."""
    cost = five_b.denoise(frames=17, rows=2)
    once = ("condition_embedder", "attn2.to_k", "attn2.to_v")
    weights = sum(
        each.numel()
        for name, each in five_b._parts["denoiser"].named_parameters()
        if not any(part in name for part in once)
    )
    assert cost.flops - cost.attention_flops == pytest.approx(2 * 2 * weights * 1500, rel=0.01)


def test_flops_on_meta_are_those_of_a_real_pass(tiny: WanSizing) -> None:
    """Real weights on the CPU compute as much, with attention written out."""
    net = WanTransformer3DModel(**TINY.transformer).requires_grad_(False)
    latents = torch.zeros(2, *tiny.latent_shape(9))
    text = Text(key_values(net, torch.zeros(PROMPT_TOKENS, 32)), torch.zeros(PROMPT_TOKENS))
    real = counted(lambda: velocity(net, latents, torch.ones(2), [text] * 2, turns_of(net, latents)))
    assert tiny.denoise(frames=9, rows=2).flops == real


def test_the_decoder_is_counted_on_a_line(tiny: WanSizing) -> None:
    """From the second latent on each costs the same, so two counts give the FLOPs of any length to the last one."""
    vae = AutoencoderKLWan(**TINY.vae, latents_mean=[0.0] * 8, latents_std=[1.0] * 8)
    for frames in (5, 17, 29):
        latents = torch.zeros(1, *tiny.latent_shape(frames))
        assert tiny.decode(frames).flops == counted(lambda latents=latents: vae.decode(latents))


def test_the_text_encoder_is_elsewhere(tiny: WanSizing) -> None:
    """Its time counts and its bytes do not; a batch of two lies between one and three."""
    one, two, three = tiny.works(9, (1, 2, 3))
    parts = tiny.parameters()
    assert one.weight_bytes("fp16") == 2 * (parts["denoiser"] + parts["decoder"])
    assert one.encode_prompt.flops > 0
    assert two.denoise == tiny.denoise(9, 4)
    assert one.denoise.flops < two.denoise.flops < three.denoise.flops
