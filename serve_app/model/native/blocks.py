"""The layers of the denoiser, over video tensors laid out [batch, frames, height, width, channels].

Channels last makes every rearrangement around a convolution or a linear layer a free view, which is most of the
speed on a CPU. Positions are fixed sinusoids of unit scale added in every block: learned absolute ones were too weak
in a trial, and these run at any size. Each layer's input is shifted and scaled and its output gated by the timestep
(adaLN; the shared projection with a small table per block is PixArt's adaLN-single, arXiv 2310.00426 §2.3).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from einops import rearrange, repeat
from torch import Tensor, nn


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


def video_positions(frames: int, height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """Return [1, frames, height, width, dim]: a third of the channels (in fours) each for frame, row and column."""
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
        x = F.silu(self.spatial(rearrange(x, "b f h w c -> (b f) c h w")))
        x = self.temporal(rearrange(x, "(b f) c h w -> b c f (h w)", b=batch))
        return rearrange(x, "b c f (h w) -> b f h w c", h=height)


class Attention(nn.Module):
    """Multi-head attention of tokens over themselves, or over a context of another width."""

    def __init__(self, dim: int, num_heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(context_dim or dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return [n, q, dim] for x [n, q, dim], context [n, k, context_dim], mask [n, k] (True where real)."""
        key_value = self.key_value(x if context is None else context)
        q = rearrange(self.query(x), "n q (a d) -> n a q d", a=self.num_heads)
        k, v = rearrange(key_value, "n k (two a d) -> two n a k d", two=2, a=self.num_heads)
        allowed = None if mask is None else mask[:, None, None, :]
        return cast(Tensor, self.out(rearrange(attend(q, k, v, allowed), "n a q d -> n q (a d)")))


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
    """Scaled dot-product attention; written out on a CPU, where torch's own is slower at tens of tokens."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    attended: Tensor = scores.softmax(dim=-1) @ v
    return attended


class AdaptiveNorm(nn.Module):
    """The timestep's grip on one block of `layers` layers: [b, layers * 3 * dim] becomes shift, scale and gate."""

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.dim = dim
        self.table = nn.Parameter(torch.zeros(layers, 3, dim))

    def forward(self, modulation: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
        """Return (shift, scale, gate) of each layer, each [b, 1, 1, 1, dim]."""
        shaped = rearrange(modulation, "b (n m c) -> b n m c", m=3, c=self.dim) + self.table
        shift, scale, gate = rearrange(shaped, "b n m c -> m n b 1 1 1 c")
        return tuple(zip(shift, scale, gate, strict=True))


class ConvBlock(nn.Module):
    """The outer level's block: one factorised convolution."""

    LAYERS = 1

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.adaptive = AdaptiveNorm(dim, self.LAYERS)
        self.conv = FactorisedConv(dim)

    def forward(self, x: Tensor, modulation: Tensor, positions: Tensor) -> Tensor:
        """Keep the shape [b, f, h, w, c]."""
        ((shift, scale, gate),) = self.adaptive(modulation)
        return cast(Tensor, x + gate * self.conv(_normed(x, shift, scale) + positions))


class VideoBlock(nn.Module):
    """The inner level's block: factorised convolution, spatial, temporal and cross-attention, MLP."""

    LAYERS = 5

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int, context_dim: int) -> None:
        super().__init__()
        self.adaptive = AdaptiveNorm(dim, self.LAYERS)
        self.conv = FactorisedConv(dim)
        self.spatial = Attention(dim, num_heads)
        self.temporal = Attention(dim, num_heads)
        self.cross = Attention(dim, num_heads, context_dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU("tanh"), nn.Linear(mlp_ratio * dim, dim))

    def forward(self, x: Tensor, modulation: Tensor, positions: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """Keep the shape [b, f, h, w, c]; context [b, k, context_dim] with mask [b, k]."""
        over_context = functools.partial(self._over_context, context=context, mask=mask)
        layers: tuple[Callable[[Tensor], Tensor], ...] = (
            self.conv,
            self._over_space,
            self._over_time,
            over_context,
            self.mlp,
        )
        for layer, (shift, scale, gate) in zip(layers, self.adaptive(modulation), strict=True):
            x = x + gate * layer(_normed(x, shift, scale) + positions)
        return x

    def _over_space(self, x: Tensor) -> Tensor:
        attended = self.spatial(rearrange(x, "b f h w c -> (b f) (h w) c"))
        return cast(Tensor, rearrange(attended, "(b f) (h w) c -> b f h w c", b=x.shape[0], h=x.shape[2]))

    def _over_time(self, x: Tensor) -> Tensor:
        attended = self.temporal(rearrange(x, "b f h w c -> (b h w) f c"))
        return cast(Tensor, rearrange(attended, "(b h w) f c -> b f h w c", b=x.shape[0], h=x.shape[2]))

    def _over_context(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        attended = self.cross(rearrange(x, "b f h w c -> b (f h w) c"), context, mask)
        return cast(Tensor, attended.view_as(x))


def _normed(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), 1 + scale)
