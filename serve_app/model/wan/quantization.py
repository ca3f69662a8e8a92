"""Weight-only quantisation of a transformer's blocks: one byte a weight in memory, the model's own dtype in products.

A layer keeps its weights as int8, or as the 8-bit floats e4m3 (arXiv 2209.05433), with one float32 scale a row, chosen
so that the row's largest weight is the largest number of the format. In a pass one layer at a time becomes numbers of
the activations' dtype, times the scale. Scaling the product instead would be cheaper, and overflow in float16. Written
here, in thirty lines, because every torch has what it takes on every device and `torch.compile` reads through it;
torchao, and diffusers' wrapper around it, would tie this project to their releases for the same numbers. It saves
memory, not time: products run in the activations' dtype (`benchmarks/wan_settings.py` measures both, on a CPU; no GPU
has run it).

Embeddings of time, text and patches, the last projection and all norms stay as they are: they are 2 % of the 5B.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor, nn

from serve_app.model.wan.speed import Quantization


@dataclass(frozen=True, slots=True)
class _Format:
    dtype: torch.dtype
    largest: float
    whole: bool
    """Whether it holds whole numbers only, to which one must round before the conversion, which would cut."""


_FORMATS: Mapping[Quantization, _Format] = {
    "int8": _Format(torch.int8, 127.0, whole=True),
    "fp8": _Format(torch.float8_e4m3fn, 448.0, whole=False),
}


class QuantizedLinear(nn.Module):
    """A linear layer [out, in] of a byte a weight: `weight` in the format, `scale` float32 [out], `bias` as it was."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear, quantization: Quantization) -> None:
        super().__init__()
        form = _FORMATS[quantization]
        exact = layer.weight.detach().float()
        scale = (exact.abs().amax(dim=1) / form.largest).clamp(min=torch.finfo(torch.float32).tiny)
        scaled = exact / scale[:, None]
        self.register_buffer("weight", (scaled.round() if form.whole else scaled).to(form.dtype))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    def forward(self, given: Tensor) -> Tensor:
        """Return given [..., in] times the weights, in its dtype."""
        weight = self.weight.to(given.dtype).mul_(self.scale[:, None])  # of two dtypes: in float32, rounded once
        return F.linear(given, weight, self.bias)


def quantize(net: nn.Module, quantization: Quantization) -> None:
    """Replace the linear layers in `net.blocks`, one at a time, so that both forms of only one are in memory."""
    blocks = net.get_submodule("blocks")
    for name, layer in list(blocks.named_modules()):
        if isinstance(layer, nn.Linear):
            parent, _, own = name.rpartition(".")
            setattr(blocks.get_submodule(parent), own, QuantizedLinear(layer, quantization))
