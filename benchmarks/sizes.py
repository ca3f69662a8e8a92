"""Sizes that the served demo offers, for programs that want a cheap render, a long one, or one between."""

from __future__ import annotations

from serve_app.model.native.config import DEMO_SIZES


def named(size: tuple[int, int]) -> str:
    """Return a size as requests have it."""
    return f"{size[0]}x{size[1]}"


SMALLEST, LARGEST = named(min(DEMO_SIZES)), named(max(DEMO_SIZES))
LONG = named(min(DEMO_SIZES, key=lambda size: abs(size[0] * size[1] - 96 * 96)))
"""The nearest to 96x96: a render that lasts some seconds, but not a minute."""
