"""Operations in pieces: the same numbers as whole, and the same bytes whoever computes the pieces."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom

from serve_app.model import pieces
from serve_app.model.one_core import one_core_threads
from serve_app.model.pieces import Pieces
from serve_app.model.rows import each_alone


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def attention(mask: torch.Tensor | None, *shape: int) -> torch.Tensor:
    query = randn(*shape)
    return F.scaled_dot_product_attention(query, query.flip(2), query + 1, attn_mask=mask)


LARGE: dict[str, Callable[[], torch.Tensor]] = {
    "linear by tokens": lambda: F.linear(randn(3, 100, 24), randn(40, 24), randn(40)),
    "linear by features": lambda: F.linear(randn(2, 3, 64), randn(640, 64)),
    "conv2d": lambda: F.conv2d(randn(2, 16, 13, 15), randn(64, 16, 3, 3), randn(64), padding=1),
    "conv2d, strided, by keyword": lambda: F.conv2d(randn(2, 16, 13, 15), weight=randn(64, 16, 3, 3), stride=2),
    "conv3d without a batch": lambda: F.conv3d(randn(16, 3, 13, 15), randn(64, 16, 3, 3, 3), padding=(1, 1, 1)),
    "attention by batch": lambda: attention(None, 40, 2, 30, 8),
    "attention by heads": lambda: attention(randn(1, 6, 50, 50), 1, 6, 50, 8),
    "attention under one mask": lambda: attention(randn(50, 50) > 0, 1, 6, 50, 8),
}


@pytest.mark.parametrize("name", LARGE)
def test_pieces_are_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to rounding the pieces put together are what the operation gives, and more than one was computed."""
    monkeypatch.setattr(pieces, "PIECE_FLOPS", 2**16)
    counts: list[int] = []
    monkeypatch.setattr(pieces, "_parts", counted(pieces._parts, counts))
    whole = LARGE[name]()
    with Pieces(None):
        found = LARGE[name]()
    assert counts
    assert min(counts) > 1
    torch.testing.assert_close(found, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", LARGE)
def test_any_number_of_threads_gives_the_same_bytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One core that computes all pieces and several that share them agree to the bit."""
    monkeypatch.setattr(pieces, "PIECE_FLOPS", 2**16)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            found += each_alone(lambda _: LARGE[name](), 1, torch.device("cpu"), in_pieces=True)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each, found[0]) for each in found)


def test_small_operations_and_groups_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not worth it, and a convolution whose output channels see different inputs, is computed as it is."""
    counts: list[int] = []
    monkeypatch.setattr(pieces, "_parts", counted(pieces._parts, counts))
    grouped = randn(2, 64, 9, 9), randn(64, 2, 3, 3)
    with Pieces(None):
        for small in LARGE.values():
            small()
        monkeypatch.setattr(pieces, "PIECE_FLOPS", 2**10)
        found = F.conv2d(*grouped, groups=32)
    assert counts == []
    assert torch.equal(found, F.conv2d(*grouped, groups=32))


def test_an_error_in_a_piece_comes_through() -> None:
    """A pool's thread that fails fails the operation, and the pool goes on."""
    pool = one_core_threads(2, "piece")
    with pytest.raises(RuntimeError), Pieces(pool):
        F.linear(torch.zeros(4096, 256), torch.zeros(512, 255))
    assert pool.submit(int, 1).result() == 1


def counted(parts: Callable[..., object], counts: list[int]) -> Callable[..., object]:
    def counting(extent: int, count: int) -> object:
        counts.append(count)
        return parts(extent, count)

    return counting
