"""Large operations of one row in pieces of fixed extent, so that several cores can share a row without changing it.

torch's own threads divide a product by how many they are, and the sums come out rounded otherwise. Here a shape alone
decides the pieces, and each is computed by one core, be it the caller's or one of a pool's: the bytes are the same with
any number of cores. Linear layers fall into pieces by tokens, or by output features where tokens are few; convolutions
by output channels; attention by batch or heads. All else stays with the caller: it is a small share of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor
from torch.overrides import TorchFunctionMode

PIECE_FLOPS = 2**26
"""A piece has at least as many, a millisecond or more of a core: handing it to another one takes a tenth of that."""
MOST_PIECES = 32
_LEAST_EXTENT = 16  # tokens, features or channels of a piece

Piece = Callable[[], Tensor]


class Pieces(TorchFunctionMode):
    """While it is on, large operations of this thread run in pieces: in `pool`, whose threads have one core each.

    Without a pool they run one after the other in this thread, which has one core too.
    """

    def __init__(self, pool: Executor | None) -> None:
        super().__init__()
        self._pool = pool

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute a torch function."""
        kwargs = kwargs or {}
        divide = _DIVIDED.get(func)
        divided = None if divide is None else divide(*args, **kwargs)
        if divided is None:
            return func(*args, **kwargs)
        pieces, dim, shape = divided
        computed = [each() for each in pieces] if self._pool is None else list(self._pool.map(_compute, pieces))
        return torch.cat(computed, dim=dim).view(shape) if shape else torch.cat(computed, dim=dim)


Divided = tuple[list[Piece], int, tuple[int, ...] | None]
"""The pieces, the dimension along which they are put together, and the shape that the whole is then viewed in."""


@torch.inference_mode()
def _compute(piece: Piece) -> Tensor:
    return piece()


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Divided | None:  # noqa: A002 - as torch has it
    tokens = input.numel() // input.shape[-1]
    count = _count(2 * tokens * weight.numel())
    shape = (*input.shape[:-1], weight.shape[0])
    if tokens >= _LEAST_EXTENT * count > _LEAST_EXTENT:
        rows = input.reshape(tokens, -1)
        return [_call(F.linear, rows[part], weight, bias) for part in _parts(tokens, count)], 0, shape
    count = min(count, weight.shape[0] // _LEAST_EXTENT)
    if count < 2:
        return None
    parts = _parts(weight.shape[0], count)
    return [_call(F.linear, input, weight[part], _part_of(bias, part)) for part in parts], -1, None


def _convolution(convolve: Callable[..., Tensor]) -> Callable[..., Divided | None]:
    def divide(
        input: Tensor,  # noqa: A002
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Divided | None:
        batched = input.ndim == weight.ndim
        places = input.numel() // input.shape[1 if batched else 0]
        count = min(_count(2 * places * weight.numel()), weight.shape[0] // _LEAST_EXTENT)
        if groups != 1 or count < 2:
            return None
        options = (stride, padding, dilation)
        parts = _parts(weight.shape[0], count)
        pieces = [_call(convolve, input, weight[part], _part_of(bias, part), *options) for part in parts]
        return pieces, 1 if batched else 0, None

    return divide


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Divided | None:
    if not query.ndim == key.ndim == value.ndim == 4 or query.shape[:2] != key.shape[:2]:
        return None
    count = _count(4 * query.numel() * key.shape[2])
    dim = 0 if len(query) >= count else 1
    count = min(count, query.shape[dim])
    if count < 2:
        return None

    def piece(part: slice) -> Piece:
        own = (slice(None),) * dim + (part,)
        mask = attn_mask
        if mask is not None and mask.ndim == 4 and mask.shape[dim] > 1:
            mask = mask[own]
        return _call(F.scaled_dot_product_attention, query[own], key[own], value[own], mask, *args, **kwargs)

    return [piece(part) for part in _parts(query.shape[dim], count)], dim, None


def _call(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Piece:
    return lambda: function(*args, **kwargs)


def _count(flops: int) -> int:
    return min(MOST_PIECES, flops // PIECE_FLOPS)


def _parts(extent: int, count: int) -> Iterator[slice]:
    return (slice(extent * part // count, extent * (part + 1) // count) for part in range(count))


def _part_of(bias: Tensor | None, part: slice) -> Tensor | None:
    return None if bias is None else bias[part]


_DIVIDED: dict[Any, Callable[..., Divided | None]] = {
    F.linear: _linear,
    F.conv2d: _convolution(F.conv2d),
    F.conv3d: _convolution(F.conv3d),
    F.scaled_dot_product_attention: _attention,
}
