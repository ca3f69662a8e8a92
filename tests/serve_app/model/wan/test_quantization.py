"""Weights of one byte: how near they are, which layers have them, what a whole denoiser makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from serve_app.model.sampler import initial_noise
from serve_app.model.wan.quantization import QuantizedLinear, quantize
from serve_app.model.wan.speed import Quantization, Speed
from serve_app.model.wan.wan import WanFamily
from tests.serve_app.model.wan.tiny_checkpoint import T2V_A14B, TI2V_5B, Kind

Families = Callable[[Kind], WanFamily]
BOTH: tuple[Quantization, ...] = ("int8", "fp8")

each = pytest.mark.parametrize("quantization", BOTH)


def denoiser(wan: Families, quantization: Quantization | None, dtype: Any = "float32", kind: Kind = TI2V_5B) -> Any:
    speed = Speed(quantization=quantization)
    return WanFamily("tiny", wan(kind).checkpoint, dtype, speed).load_denoiser("cpu")


def velocity(net: Any, kind: Kind = TI2V_5B) -> torch.Tensor:
    latents, timesteps = initial_noise((2, kind.z_dim, 3, 4, 6), 1), torch.tensor([950.0, 500.0])
    prompts = [net.prepare(initial_noise((length, 32), length)) for length in (4, 9)]
    found: torch.Tensor = net.predict(latents, timesteps, prompts)
    return found


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """The root of the mean squared difference, over that of what is exact."""
    return float((found - exact).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt())


def kept(layer: QuantizedLinear) -> torch.Tensor:
    """What the layer's weights stand for, [out, in]: each is its answer to a vector of one 1."""
    with torch.inference_mode():
        return (layer(torch.eye(layer.weight.shape[1])) - (0 if layer.bias is None else layer.bias)).T


@given(seed=st.integers(0, 2**32), rows=st.integers(1, 9), columns=st.integers(1, 40), exponent=st.integers(-20, 15))
@settings(max_examples=60, deadline=None)
def test_a_weight_is_within_half_a_step(seed: int, rows: int, columns: int, exponent: int) -> None:
    """Each row by itself: int8's steps are a 127th of its largest weight, fp8's an eighth of the weight at most."""
    layer = nn.Linear(columns, rows, bias=False).requires_grad_(False)
    layer.weight.copy_(initial_noise((rows, columns), seed) * torch.logspace(0, 3, rows)[:, None] * 2.0**exponent)
    exact, largest = layer.weight, layer.weight.abs().amax(dim=1, keepdim=True)
    whole, floats = (kept(QuantizedLinear(layer, quantization)) - exact for quantization in BOTH)
    assert (whole.abs() <= largest / 127 / 2 * 1.0001).all()
    assert (floats.abs() <= torch.maximum(exact.abs() / 16, largest / 448 * 2.0**-10) * 1.0001).all()


@each
def test_a_row_of_zeros_stays_one(quantization: Quantization) -> None:
    """There is no largest weight to divide by, and nothing becomes NaN, in half precision too."""
    layer = nn.Linear(4, 3, bias=False).requires_grad_(False)
    layer.weight[1] = 0
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        answer = QuantizedLinear(layer.to(dtype), quantization)(torch.ones(1, 4, dtype=dtype))
        assert answer.isfinite().all()
        assert answer[0, 1] == 0


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_a_weight_once(quantization: Quantization, dtype: torch.dtype) -> None:
    """Scales stay float32, where float16 has no bits left for them: a weight is the product, rounded to the dtype."""
    layer = nn.Linear(33, 5).requires_grad_(False)
    layer.weight.copy_(initial_noise((5, 33), 1) * 0.003)
    kept_small = QuantizedLinear(layer.to(dtype), quantization)
    weight = (kept_small.weight.float() * kept_small.scale[:, None]).to(dtype)
    inputs = initial_noise((7, 33), 2).to(dtype)
    assert torch.equal(kept_small(inputs), F.linear(inputs, weight, layer.bias))


@each
def test_the_blocks_weights_take_one_byte_each(wan: Families, quantization: Quantization) -> None:
    """Every linear layer of the blocks is kept in the format, its scales are one a row; nothing else has changed."""
    full, small = (denoiser(wan, each_way, "bfloat16")._nets[0] for each_way in (None, quantization))
    layers = {name: layer for name, layer in full.blocks.named_modules() if isinstance(layer, nn.Linear)}
    replaced = {name: layer for name, layer in small.blocks.named_modules() if isinstance(layer, QuantizedLinear)}
    assert layers.keys() == replaced.keys()
    assert not any(isinstance(layer, nn.Linear) for layer in small.blocks.modules())
    for name, layer in layers.items():
        assert replaced[name].weight.nbytes == layer.weight.numel() == layer.weight.nbytes // 2
        assert replaced[name].scale.shape == (layer.out_features,)
        assert torch.equal(replaced[name].bias, layer.bias)
    left, before = (dict(net.named_parameters()) for net in (small, full))
    assert left
    assert all(torch.equal(tensor, before[name]) for name, tensor in left.items())
    assert small.dtype is full.dtype is torch.bfloat16


@each
@pytest.mark.parametrize("kind", [TI2V_5B, T2V_A14B], ids=["5b", "a14b"])
def test_predictions_stay_near_the_full_ones(wan: Families, quantization: Quantization, kind: Kind) -> None:
    """A pass is a per cent off in int8 and a few in fp8, which has three bits of a number; never equal."""
    exact, found = (velocity(denoiser(wan, each_way, kind=kind), kind) for each_way in (None, quantization))
    assert 0 < error(found, exact) < {"int8": 0.02, "fp8": 0.06}[quantization]


@each
def test_in_half_precision(wan: Families, quantization: Quantization) -> None:
    """bfloat16 products of weights that were quantised are as near to float32 as the format lets them be."""
    exact, found = velocity(denoiser(wan, None)), velocity(denoiser(wan, quantization, "bfloat16"))
    assert found.dtype is torch.float32
    assert 0 < error(found, exact) < {"int8": 0.03, "fp8": 0.07}[quantization]


def test_both_transformers_are_quantised(wan: Families) -> None:
    """Wan2.2-A14B has two, and the second would not fit where the first one does."""
    for net in denoiser(wan, "int8", kind=T2V_A14B)._nets:
        assert isinstance(net.blocks[0].attn1.to_q, QuantizedLinear)


def test_a_net_is_quantised_in_place() -> None:
    """Layers outside of `blocks` are left alone, a sequence's inner ones are found."""
    net = nn.Module()
    net.blocks = nn.ModuleList([nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 2, bias=False))])
    net.out = nn.Linear(2, 2)
    quantize(net, "fp8")
    first, _, last = net.blocks[0]
    assert (first.weight.dtype, last.weight.dtype, last.bias) == (torch.float8_e4m3fn, torch.float8_e4m3fn, None)
    assert isinstance(net.out, nn.Linear)
