"""The same bytes in any company: every row of a pass is computed by itself, by one core or in fixed pieces.

A matrix product of another size is divided otherwise, and so is one that other numbers of threads share: its sums are
then rounded in another order, which guidance and bfloat16 magnify. A row that is computed alone, from memory laid out
alike, by threads that torch has one core in, knows nothing of its company, its place in it, or the machine's cores.
Several rows keep several cores busy just as well; of a large row the large operations are shared (`pieces`).

Of torch's kernels, measured one by one on a CPU in float32, these differ in last bits: by the rows beside, convolutions
and linear layers of few tokens; by the number of threads, linear layers of few tokens, sums over a whole tensor, and
`gelu(tanh)`, which computes the ends of each thread's share by other code than its middle. Attention, norms, softmax
and large products did not differ here; on another processor others may, so nothing relies on that.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from serve_app.model.one_core import one_core_threads
from serve_app.model.pieces import Pieces

T = TypeVar("T")

_IN_PIECES = 2**34
"""From so many weights times places on, a row's operations are worth sharing: half a second of one core."""


def worth_sharing(weights: int, places: int) -> bool:
    """Tell whether a row of so many places, tokens or pixels, is large enough to be computed in pieces."""
    return weights * places >= _IN_PIECES


def each_alone(compute: Callable[[int], T], rows: int, device: torch.device, *, in_pieces: bool = False) -> list[T]:
    """Return what `compute` makes of each row, in inference mode; on a CPU in threads that have one core each.

    As many rows at a time as torch may use threads here. What it raises comes through, once all have ended.
    in_pieces: share a row's large operations among cores that have no row; a row's shape must decide it, as the pieces
    are used on every device.
    """
    if device.type != "cpu":
        return [torch.inference_mode()(compute)(row) for row in range(rows)]
    threads = torch.get_num_threads()
    shared = one_core_threads(threads, "piece") if in_pieces and rows < threads else None

    @torch.inference_mode()
    def alone(row: int) -> T:
        with Pieces(shared) if in_pieces else nullcontext():
            return compute(row)

    if threads == 1:
        return [alone(row) for row in range(rows)]
    pool = one_core_threads(threads, "row")
    return _all_of([pool.submit(alone, row) for row in range(rows)])


def by_itself(compute: Callable[[], T], device: torch.device, *, in_pieces: bool = False) -> T:
    """Return what `compute` makes, as `each_alone` would of a single row."""
    (made,) = each_alone(lambda _: compute(), 1, device, in_pieces=in_pieces)
    return made


def laid_out_alike(rows: Tensor) -> Tensor:
    """Return a copy whose strides and address say nothing of what it was cut from: kernels choose by both."""
    return rows.clone(memory_format=torch.contiguous_format)


def _all_of(futures: list[Future[T]]) -> list[T]:
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()
        wait(futures)
