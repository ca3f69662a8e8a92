"""Frames of the size that was asked for, from a model that makes one size alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from serve_app.engine.decoding import scaled


def test_frames_of_the_size_asked_for_are_left_alone() -> None:
    """Nothing is computed, and nothing copied, where the model made what was asked for."""
    frames = np.zeros((2, 48, 64, 3), np.uint8)
    assert scaled(frames, 64, 48) is frames


@pytest.mark.parametrize("side", [32, 48, 96, 128])
def test_a_picture_keeps_its_colours_and_places(side: int) -> None:
    """A half red, half blue frame is that at any size; far from the edge no number moves."""
    frames = np.zeros((3, 64, 64, 3), np.uint8)
    frames[:, :, :32] = (255, 0, 0)
    frames[:, :, 32:] = (0, 0, 255)
    made = scaled(frames, side, side)
    assert (made.shape, made.dtype) == ((3, side, side, 3), np.uint8)
    assert (made[:, :, : side * 3 // 8] == (255, 0, 0)).all()
    assert (made[:, :, side * 5 // 8 :] == (0, 0, 255)).all()


def test_a_frame_is_scaled_alike_alone_and_in_company() -> None:
    """The bytes of a frame depend neither on its neighbours nor on the number of threads."""
    frames = torch.randint(0, 256, (8, 64, 64, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8).numpy()
    together = scaled(frames, 96, 96)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = np.concatenate([scaled(frames[i : i + 1], 96, 96) for i in range(8)])
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(together, alone)
