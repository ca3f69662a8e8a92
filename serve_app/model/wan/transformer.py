"""One pass of WanTransformer3DModel over rows at different timesteps, without what is the same in every pass.

The modules and weights are diffusers'; so is the arithmetic, precision by precision (tests hold it to the class's own
forward). Left out of the pass is what does not change from step to step: a job's text keys and values in every block
are computed once, and rotary tables once a shape. A timestep modulates all tokens of a row alike, or of a latent frame
where one is given (image-to-video), so it is one vector a row or a frame; `expand_timesteps` has one a token.

WanPipeline pads texts with zeros to 512 tokens and lets the transformer attend to the padding, which is hundreds of
times the same key and value: here they are `COPIES` tokens whose attention is raised by the logarithm of how many they
stand for. It takes three because a bias in bfloat16 has eight bits: one would be off by 1 %, three are by 1e-6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from diffusers import WanTransformer3DModel
from einops import rearrange
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from serve_app.model.wan.tokenizer import MAX_TOKENS

COPIES = 3
Block = Callable[[Any, Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor]], Tensor]
"""What `run_block` is, as it is or compiled."""


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """What a transformer's passes need of one prompt, on its device and in its dtype; k tokens, padding included."""

    key_value: Tensor
    """[k, layers, 2, heads, head_dim]"""
    bias: Tensor
    """[k], what is added to attention scores: 0 for a real token"""


def prepare(net: WanTransformer3DModel, prompt_embeds: Tensor) -> Text:
    """Return one prompt's keys and values in every block; prompt_embeds [num_tokens, text_dim], at most 512 tokens."""
    missing = MAX_TOKENS - len(prompt_embeds)
    biases = _biases(missing, net.dtype)
    padded = F.pad(prompt_embeds, (0, 0, 0, len(biases))).to(net.device, net.dtype)
    bias = torch.tensor([0.0] * len(prompt_embeds) + biases, dtype=net.dtype, device=net.device)
    return Text(key_values(net, padded), bias)


def key_values(net: WanTransformer3DModel, padded: Tensor) -> Tensor:
    """Return [k, layers, 2, heads, head_dim] of a prompt's embeddings [k, text_dim], on the device and in its dtype."""
    context = net.condition_embedder.text_embedder(padded)
    return torch.stack([_key_value(block.attn2, context) for block in net.blocks], dim=1)


def together(texts: Sequence[Text]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield each block's keys and values [b, heads, k, head_dim] of all rows, with the scores' biases [b, 1, 1, k].

    One block at a time: of 512 tokens, all of a 5B's keys and values at once would be a copy of 190 MB a row.
    """
    bias = pad_sequence([text.bias for text in texts], batch_first=True, padding_value=-math.inf)[:, None, None]
    for block in range(texts[0].key_value.shape[1]):
        rows = pad_sequence([text.key_value[:, block] for text in texts], batch_first=True)
        key, value = rearrange(rows, "b k two h d -> two b h k d")
        yield key, value, bias


def velocity(
    net: WanTransformer3DModel,
    latents: Tensor,
    timesteps: Tensor,
    texts: Sequence[Text],
    turns: Tensor,
    block: Block | None = None,
) -> Tensor:
    """Predict the velocity in float32: latents [b, c, f, h, w], timesteps [b] or [b, f], one text a row, `turns_of`."""
    run = block or run_block
    _, _, frames, height, width = latents.shape
    patch = dict(zip("pqr", net.config.patch_size, strict=True))
    hidden = net.patch_embedding(latents.to(net.dtype)).flatten(2).transpose(1, 2).contiguous()
    temb, modulation = _moment(net, timesteps if timesteps.ndim == 2 else timesteps[:, None], hidden)
    for each, text in zip(net.blocks, together(texts), strict=True):
        hidden = run(each, hidden, modulation, turns, text)
    shift, scale = (net.scale_shift_table + temb[:, :, None]).chunk(2, dim=2)
    hidden = net.proj_out(_modulated(net.norm_out(hidden.float()), shift, scale).type_as(hidden))
    whole = "b (f h w) (p q r c) -> b c (f p) (h q) (w r)"
    size = {"f": frames // patch["p"], "h": height // patch["q"], "w": width // patch["r"]}
    return cast(Tensor, rearrange(hidden, whole, **size, **patch).float())


def _moment(net: Any, timesteps: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Return embeddings of timesteps [b, g] as [b, g, dim], and their modulation of every block [b, g, 6, dim].

    g: into how many parts with a timestep of their own a row's tokens fall, in order.
    """
    embedder = net.condition_embedder
    features = embedder.timesteps_proj(timesteps.flatten()).to(next(embedder.time_embedder.parameters()).dtype)
    temb = embedder.time_embedder(features).type_as(hidden)
    modulation = embedder.time_proj(embedder.act_fn(temb)).unflatten(1, (6, -1)).float()
    return temb.unflatten(0, timesteps.shape), modulation.unflatten(0, timesteps.shape)


def run_block(
    block: Any, hidden: Tensor, modulation: Tensor, turns: Tensor, text: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """Return a block's output, of `hidden`'s shape [b, tokens, dim] and dtype; `text` as `together` yields it."""
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (block.scale_shift_table + modulation).chunk(6, dim=2)
    normed = _modulated(block.norm1(hidden.float()), shift, scale).type_as(hidden)
    hidden = (hidden.float() + _scaled(_attended(block.attn1, normed, turns), gate)).type_as(hidden)
    hidden = hidden + _cross(block.attn2, block.norm2(hidden.float()).type_as(hidden), *text)
    normed = _modulated(block.norm3(hidden.float()), ffn_shift, ffn_scale).type_as(hidden)
    return (hidden.float() + _scaled(block.ffn(normed).float(), ffn_gate)).type_as(hidden)


def _modulated(hidden: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return tokens [b, n, dim] scaled and shifted, each part by its own [b, g, 1, dim]."""
    return (_in_parts(hidden, shift.shape[1]) * (1 + scale) + shift).flatten(1, 2)


def _scaled(hidden: Tensor, gate: Tensor) -> Tensor:
    return (_in_parts(hidden, gate.shape[1]) * gate).flatten(1, 2)


def _in_parts(hidden: Tensor, parts: int) -> Tensor:
    """View tokens [b, n, dim] as [b, parts, n / parts, dim]."""
    return hidden.reshape(len(hidden), parts, -1, hidden.shape[-1])


def _attended(attn: Any, hidden: Tensor, turns: Tensor) -> Tensor:
    query, key, value = attn.norm_q(attn.to_q(hidden)), attn.norm_k(attn.to_k(hidden)), attn.to_v(hidden)
    query, key, value = (each.unflatten(2, (attn.heads, -1)) for each in (query, key, value))
    turned = [_turned(each, turns).transpose(1, 2) for each in (query, key)]
    attended = F.scaled_dot_product_attention(turned[0], turned[1], value.transpose(1, 2))
    return cast(Tensor, attn.to_out[0](attended.transpose(1, 2).flatten(2)))


def turns_of(net: Any, latents: Tensor) -> Tensor:
    """Return the rotary table of latents' shape [b, c, f, h, w], which may be on the meta device.

    It is [1, tokens, 1, head_dim / 2, 2]: diffusers has every cosine and sine twice.
    """
    cosines, sines = net.rope(latents)
    return torch.stack([cosines[..., 0::2], sines[..., 1::2]], dim=-1)


def _turned(heads: Tensor, turns: Tensor) -> Tensor:
    """QueuedRender pairs of [b, tokens, heads, head_dim] by their angles, in float32: products of complex numbers.

    On a CPU that takes a twelfth of the time that writing every other number does, to the same bits. The compiler has
    no complex numbers, and no need of them.
    """
    pairs = heads.float().reshape(*heads.shape[:-1], -1, 2)
    if torch.compiler.is_compiling():
        (x, y), (cosine, sine) = pairs.unbind(-1), turns.unbind(-1)
        turned = torch.stack([x * cosine - y * sine, x * sine + y * cosine], dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turns))
    return turned.flatten(-2).type_as(heads)


def _cross(attn: Any, hidden: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    query = attn.norm_q(attn.to_q(hidden)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return cast(Tensor, attn.to_out[0](attended.transpose(1, 2).flatten(2)))


def _key_value(attn: Any, context: Tensor) -> Tensor:
    """Return [k, 2, heads, head_dim]."""
    both = torch.stack([attn.norm_k(attn.to_k(context)), attn.to_v(context)], dim=1)
    return rearrange(both, "k two (h d) -> k two h d", h=attn.heads)


def _biases(count: int, dtype: torch.dtype) -> list[float]:
    """Return up to `COPIES` numbers that `dtype` can hold, whose exponentials add up to `count` as nearly as it can."""
    found: list[float] = []
    left = float(count)
    while left > 0 and len(found) < COPIES:
        bias = torch.tensor(math.log(left), dtype=dtype)
        if math.exp(bias.item()) > left:
            bias = torch.nextafter(bias, torch.tensor(-math.inf, dtype=dtype))
        found.append(bias.item())
        left -= math.exp(bias.item())
    return found
