"""The layers of the denoiser, over video tensors laid out [batch, frames, height, width, channels].

Channels last makes every rearrangement around a convolution or a linear layer a free view, which is most of the
speed on a CPU. Positions are fixed sinusoids of unit scale added in every block: learned absolute ones were too weak
in a trial, and these run at any size. Each layer's input is shifted and scaled and its output gated by a condition,
the timestep and the prompt (adaLN, arXiv 2212.09748 §3.2). Most of that projection is shared by a level's blocks
(adaLN-single, arXiv 2310.00426 §2.3); each block adds a table and a low-rank part of its own, as Cosmos does
(arXiv 2501.03575 §5.2), because a prompt has more to say to a block than a timestep has.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import ClassVar, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from einops import rearrange, repeat
from torch import Tensor, nn

from serve_app.model.native.config import DenoiserConfig


def sinusoids(values: Tensor, dim: int, max_period: float) -> Tensor:
    """Return [..., dim] sines and cosines of `values` [...], periods from 2*pi to 2*pi*max_period; `dim` is even."""
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=values.device) / half)
    angles = values[..., None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def axis_positions(length: int, dim: int, device: torch.device) -> Tensor:
    """Return [length, dim] for one axis, counted from both ends so that a layer knows where the canvas stops."""
    index = torch.arange(length, device=device)
    return torch.cat([sinusoids(index, dim // 2, 64.0), sinusoids(length - 1 - index, dim // 2, 64.0)], dim=-1)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def video_positions(frames: int, height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """Return [1, frames, height, width, dim]: a third of the channels (in fours) each for frame, row and column.

    Cached, and made outside of inference mode so that training may follow serving in one process.
    """
    part = dim // 12 * 4
    grid = torch.cat(
        [
            repeat(axis_positions(frames, part, device), "f c -> f h w c", h=height, w=width),
            repeat(axis_positions(height, part, device), "h c -> f h w c", f=frames, w=width),
            repeat(axis_positions(width, part, device), "w c -> f h w c", f=frames, h=height),
        ],
        dim=-1,
    )
    return F.pad(grid, (0, dim - 3 * part))[None]


class FactorisedConv(nn.Module):
    """A 3-D convolution in two: spatial 1x3x3, then temporal 3x1x1."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(dim, dim, 3, padding=1)
        self.temporal = nn.Conv2d(dim, dim, (3, 1), padding=(1, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape [b, f, h, w, c]."""
        batch, _, height, _, _ = x.shape
        x = self.spatial(rearrange(x, "b f h w c -> (b f) c h w"))
        x = F.silu(x, inplace=not torch.is_grad_enabled())
        x = self.temporal(rearrange(x, "(b f) c h w -> b c f (h w)", b=batch))
        return rearrange(x, "b c f (h w) -> b f h w c", h=height)


class Attention(nn.Module):
    """Multi-head attention of tokens over themselves, or over a context of another width.

    The context's keys and values do not depend on x: a caller that attends several times makes them once, with
    `key_value`.
    """

    def __init__(self, dim: int, num_heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(context_dim or dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, key_value: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return [n, q, dim] for x [n, q, dim], key_value [n, k, 2 * dim], mask [n, k] (True where real)."""
        key_value = self.key_value(x) if key_value is None else key_value
        q = rearrange(self.query(x), "n q (a d) -> n a q d", a=self.num_heads)
        k, v = rearrange(key_value, "n k (two a d) -> two n a k d", two=2, a=self.num_heads)
        allowed = None if mask is None else mask[:, None, None, :]
        return cast(Tensor, self.out(rearrange(attend(q, k, v, allowed), "n a q d -> n q (a d)")))


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
    """Scaled dot-product attention; written out for training on a CPU, where torch's own backward pass is slow.

    Without gradients torch's own takes half the time there, because it neither copies nor keeps the scores.
    """
    if q.device.type != "cpu" or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    attended: Tensor = scores.softmax(dim=-1) @ v
    return attended


Modulations = tuple[tuple[Tensor, Tensor, Tensor], ...]
"""(shift, scale, gate) of each layer of a block, each [b, frames, 1, 1, dim]."""


class AdaptiveNorm(nn.Module):
    """The condition's grip on one block of `layers` layers."""

    def __init__(self, dim: int, layers: int, condition_dim: int, rank: int) -> None:
        super().__init__()
        self.dim = dim
        self.table = nn.Parameter(torch.zeros(layers, 3, dim))
        self.down = nn.Linear(condition_dim, rank, bias=False)
        self.up = nn.Linear(rank, layers * 3 * dim, bias=False)

    def forward(self, condition: Tensor, shared: Tensor) -> Modulations:
        """Take the condition [b, frames, condition_dim] and the level's projection of it [.., layers * 3 * dim]."""
        own = shared + self.up(self.down(condition))
        shaped = rearrange(own.to(self.table), "b f (n m c) -> b f n m c", m=3, c=self.dim) + self.table
        shift, scale, gate = rearrange(shaped, "b f n m c -> m n b f 1 1 c")
        return tuple(zip(shift, scale, gate, strict=True))


class ConvBlock(nn.Module):
    """The outer level's block: one factorised convolution."""

    LAYERS = 1

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        dim = config.outer_channels
        self.adaptive = AdaptiveNorm(dim, self.LAYERS, config.inner_channels, config.modulation_rank)
        self.conv = FactorisedConv(dim)

    def forward(self, x: Tensor, condition: Tensor, shared: Tensor, positions: Tensor) -> Tensor:
        """Keep the shape [b, f, h, w, c]."""
        ((shift, scale, gate),) = self.adaptive(condition, shared)
        return _residual(x, gate, self.conv(_normed(x, shift, scale) + positions))


class SelfAttention(Attention):
    """Attention over some axes of a video at once, for each place along the others."""

    TOKENS: ClassVar[dict[str, str]] = {
        "joint": "b (f h w) c",
        "space": "(b f) (h w) c",
        "time": "(b h w) f c",
    }

    def __init__(self, dim: int, num_heads: int, over: str) -> None:
        super().__init__(dim, num_heads)
        self._tokens = self.TOKENS[over]

    def forward(self, x: Tensor, key_value: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Keep the shape [b, f, h, w, c]; keys and values are the video's own."""
        sizes = dict(zip("bfhw", x.shape, strict=False))
        attended = super().forward(rearrange(x, f"b f h w c -> {self._tokens}"))
        return rearrange(attended, f"{self._tokens} -> b f h w c", **sizes)


class CrossAttention(Attention):
    """Attention of a video's every place over the prompt."""

    def forward(self, x: Tensor, key_value: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Keep the shape [b, f, h, w, c]; key_value [b, k, 2 * c] of the prompt with mask [b, k]."""
        attended = super().forward(rearrange(x, "b f h w c -> b (f h w) c"), key_value, mask)
        return attended.view_as(x)


class VideoBlock(nn.Module):
    """The inner level's block: factorised convolution (if configured), self-attention, cross-attention, MLP."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        dim, hidden = config.inner_channels, config.mlp_ratio * config.inner_channels
        self.adaptive = AdaptiveNorm(dim, self.layers_of(config), dim, config.modulation_rank)
        self.before: nn.ModuleList = nn.ModuleList()
        if config.inner_convolution:
            self.before.append(FactorisedConv(dim))
        for over in ("joint",) if config.joint_attention else ("space", "time"):
            self.before.append(SelfAttention(dim, config.num_heads, over))
        self.cross = CrossAttention(dim, config.num_heads, config.context_dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU("tanh"), nn.Linear(hidden, dim))

    @staticmethod
    def layers_of(config: DenoiserConfig) -> int:
        """Count the layers that the condition modulates."""
        return int(config.inner_convolution) + (1 if config.joint_attention else 2) + 2

    def forward(
        self, x: Tensor, condition: Tensor, shared: Tensor, positions: Tensor, key_value: Tensor, mask: Tensor
    ) -> Tensor:
        """Keep the shape [b, f, h, w, c]; key_value [b, k, 2 * c] is `cross.key_value` of the prompt, mask [b, k]."""
        cross = functools.partial(self.cross, key_value=key_value, mask=mask)
        layers: list[Callable[[Tensor], Tensor]] = [*self.before, cross, self.mlp]
        for layer, (shift, scale, gate) in zip(layers, self.adaptive(condition, shared), strict=True):
            x = _residual(x, gate, layer(_normed(x, shift, scale) + positions))
        return x


def _normed(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), 1 + scale)


def _residual(x: Tensor, gate: Tensor, change: Tensor) -> Tensor:
    # Under autocast the change is bfloat16; arithmetic of mixed dtypes took forty times as long here as of one.
    return torch.addcmul(x, gate, change.to(x.dtype))
