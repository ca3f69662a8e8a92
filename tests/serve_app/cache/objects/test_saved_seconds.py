"""What a frame saves, read out of whatever lies in a store."""

from __future__ import annotations

import math

import pytest

from serve_app.cache.objects.saved_seconds import HEADER_BYTES, UNKNOWN_SECONDS, cost_seconds, meta_cost_seconds
from serve_app.core import Entry
from tests.serve_app.cache.frames import framed


def test_the_parts_add_up() -> None:
    """A video tells its render and its encoding, other kinds one figure."""
    assert meta_cost_seconds({"render_seconds": 2.5, "encode_seconds": 0.5, "spec": {}}) == 3.0
    assert meta_cost_seconds({"cost_seconds": 0.25}) == 0.25


@pytest.mark.parametrize(
    "meta", [{}, {"cost_seconds": "much"}, {"cost_seconds": math.nan}, {"cost_seconds": -1}, {"render_seconds": None}]
)
def test_what_tells_nothing_counts_as_a_second(meta: dict[str, object]) -> None:
    """A figure that is missing or makes no sense must not break eviction, nor keep a value for ever."""
    assert meta_cost_seconds(meta) == UNKNOWN_SECONDS


@pytest.mark.parametrize("data", [b"", b"data", b"ENCR", bytes(1000)])
def test_bytes_that_are_no_frame(data: bytes) -> None:
    """Nothing is raised for them."""
    assert cost_seconds(data) == UNKNOWN_SECONDS


def test_the_first_bytes_are_enough() -> None:
    """The longest metadata there can be leave the header within the bytes that are read for it."""
    meta = {"labels": ["ab" * 32] * 512, "note": "\U0001f469" * 2000, "cost_seconds": 7.0}
    frame = framed(Entry.of("ab" * 32, bytes(500_000), meta))
    assert cost_seconds(frame[:HEADER_BYTES]) == cost_seconds(frame) == 7.0
