"""What a process loaded at its start is not looked at again."""

from __future__ import annotations

import gc

from deployments.replica.freeze_gc import settle


def test_what_is_alive_is_left_alone_and_what_comes_is_not() -> None:
    """After it the collector has nothing to look at; garbage made later is still found."""
    try:
        settle()
        assert gc.get_freeze_count() > 1000
        before = len(gc.get_objects())
        circle: list[object] = []
        circle.append(circle)
        assert len(gc.get_objects()) > before
        del circle
        assert gc.collect() >= 1
    finally:
        gc.unfreeze()
