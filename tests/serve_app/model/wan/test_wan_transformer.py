"""The pass with what is constant left out, against the forward of diffusers' own class."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

from serve_app.model.sampler import initial_noise
from serve_app.model.wan.transformer import COPIES, _biases, prepare, together, turns_of, velocity
from serve_app.model.wan.wan import WanFamily
from tests.serve_app.model.wan.reference import plain
from tests.serve_app.model.wan.tiny_checkpoint import TI2V_5B

LATENTS = initial_noise((4, 8, 3, 4, 6), 1)
TIMESTEPS = torch.tensor([999.0, 500.0, 20.0, 1.0])
EMBEDS = [initial_noise((length, 32), length) for length in (1, 511, 40, 512)]


@pytest.fixture
def net(wan: Callable[..., WanFamily]) -> Any:
    denoiser: Any = wan(TI2V_5B).load_denoiser("cpu")
    return denoiser._nets[0]


@torch.no_grad()
def predicted(net: Any, rows: slice = slice(None)) -> torch.Tensor:
    texts = [prepare(net, embeds) for embeds in EMBEDS[rows]]
    return velocity(net, LATENTS[rows], TIMESTEPS[rows], texts, turns_of(net, LATENTS))


def test_it_is_the_class_s_own_forward(net: Any) -> None:
    """Rows at different timesteps with texts of 1 to 512 tokens, together and alone."""
    expected = plain(net, LATENTS, TIMESTEPS, EMBEDS)
    torch.testing.assert_close(predicted(net), expected, atol=1e-5, rtol=0)
    for row in range(4):
        alone = slice(row, row + 1)
        torch.testing.assert_close(predicted(net, alone), expected[alone], atol=1e-5, rtol=0)


def test_a_timestep_a_token_says_no_more_than_one_a_row(net: Any) -> None:
    """`expand_timesteps`, as the pipeline does it for the 5B, gives the same for text-to-video."""
    expected = plain(net, LATENTS, TIMESTEPS[:, None].expand(-1, 3 * 2 * 3), EMBEDS)
    torch.testing.assert_close(predicted(net), expected, atol=1e-5, rtol=0)


def test_half_precision_is_no_worse_than_the_class_s(wan: Callable[..., WanFamily], net: Any) -> None:
    """In bfloat16 the distance from float32 is the plain forward's own, the padding's few tokens included."""
    half: Any = WanFamily("half", wan(TI2V_5B).checkpoint, "bfloat16").load_denoiser("cpu")
    exact = plain(net, LATENTS, TIMESTEPS, EMBEDS)
    theirs = (plain(half._nets[0], LATENTS, TIMESTEPS, EMBEDS) - exact).pow(2).mean().sqrt()
    ours = (predicted(half._nets[0]) - exact).pow(2).mean().sqrt()
    assert 0 < ours < 1.15 * theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_few_tokens_weigh_as_much_as_the_padding(dtype: torch.dtype) -> None:
    """The exponentials of what the precision can hold add up to the number of padding tokens, to 1e-5 of it."""
    assert _biases(0, dtype) == []
    for count in (1, 2, 3, 100, 471, 511):
        biases = _biases(count, dtype)
        assert len(biases) <= COPIES
        assert biases == torch.tensor(biases, dtype=dtype).tolist()
        assert sum(map(math.exp, biases)) == pytest.approx(count, rel=1e-5)


def test_a_text_is_small(net: Any) -> None:
    """What a job keeps grows with its own tokens, not with the pipeline's 512; rows of a pass are padded unseen."""
    short, long = (prepare(net, embeds) for embeds in (EMBEDS[0], EMBEDS[2]))
    assert short.key_value.shape == (1 + len(_biases(511, torch.float32)), 2, 2, 2, 12)
    (key, value, bias), _ = together([short, long])
    assert key.shape == value.shape == (2, 2, len(long.bias), 12)
    assert bias.shape == (2, 1, 1, len(long.bias))
    assert bias[0, 0, 0, len(short.bias) :].isneginf().all()


def test_diffusers_class_has_the_parts_that_are_used_here() -> None:
    """Were the class rebuilt, this fails by name before any number does."""
    net = WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=12, ffn_dim=8, num_layers=1, text_dim=8, freq_dim=8
    )
    assert {name for name, _ in net.named_children()} == {
        "rope", "patch_embedding", "condition_embedder", "blocks", "norm_out", "proj_out",
    }  # fmt: skip
    assert {name for name, _ in net.blocks[0].named_children()} == {"norm1", "attn1", "attn2", "norm2", "ffn", "norm3"}
