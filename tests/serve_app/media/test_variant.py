"""Thumbnails and sprite sheets: the right frames of the finished file, in the forms that the API names."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core import Frames
from serve_app.errors import RenderFailed
from serve_app.media import Variant, encode_mp4, spritesheet, thumbnail
from serve_app.media.variant import evenly_apart
from tests.serve_app.media.test_picture import seen


def counted(num_frames: int, height: int = 16, width: int = 32) -> Frames:
    """Frames whose gray says their number: 8 for each."""
    return np.stack([np.full((height, width, 3), 8 * index, np.uint8) for index in range(num_frames)])


def number(picture: Frames) -> int:
    return round(float(picture.mean()) / 8)


@pytest.mark.parametrize(("num_frames", "middle"), [(1, 0), (2, 1), (3, 1), (8, 4), (25, 12)])
def test_the_thumbnail_is_the_middle_frame(num_frames: int, middle: int) -> None:
    """Proves which frame is shown, in full size, as a WebP."""
    data = thumbnail(encode_mp4(counted(num_frames), fps=4, quality=10))
    assert (data[:4], data[8:12]) == (b"RIFF", b"WEBP")
    assert seen(data).shape == (16, 32, 3)
    assert number(seen(data)) == middle


@pytest.mark.parametrize("num_frames", [1, 3, 6, 16, 25])
def test_the_sheet_has_its_frames_in_reading_order(num_frames: int) -> None:
    """Proves which frame is in which cell, that a short video makes a small sheet, and that the rest is black."""
    sheet = seen(spritesheet(encode_mp4(counted(num_frames), fps=4, quality=10)))
    indices = evenly_apart(num_frames)
    columns, rows = min(4, num_frames), -(-len(indices) // 4)
    assert sheet.shape == (rows * 16, columns * 32, 3)
    cells = sheet.reshape(rows, 16, columns, 32, 3).swapaxes(1, 2).reshape(-1, 16, 32, 3)
    assert [number(cell) for cell in cells] == indices + [0] * (len(cells) - len(indices))


@given(st.integers(1, 1000))
def test_evenly_apart(num_frames: int) -> None:
    """Proves that all frames or 16 are shown, first and last among them, ascending, as evenly as whole numbers can."""
    indices = evenly_apart(num_frames)
    assert len(indices) == min(16, num_frames)
    assert (indices[0], indices[-1]) == (0, num_frames - 1)
    gaps = {after - before for before, after in itertools.pairwise(indices)}
    assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)


def test_large_frames_are_scaled_down() -> None:
    """Proves that a cell is at most 320 pixels on its longer side, in the video's own proportions."""
    tall = encode_mp4(counted(2, height=640, width=320), fps=4)
    assert seen(spritesheet(tall)).shape == (320, 2 * 160, 3)
    assert seen(thumbnail(tall)).shape == (640, 320, 3)


@pytest.mark.parametrize("make", [thumbnail, spritesheet])
def test_the_same_video_gives_the_same_bytes(make: Callable[[bytes], bytes]) -> None:
    """Proves that a picture has one ETag wherever it is made."""
    video = encode_mp4(np.random.default_rng(1).integers(0, 255, (9, 48, 64, 3)).astype(np.uint8), fps=4)
    assert make(video) == make(video)


@pytest.mark.parametrize("make", [thumbnail, spritesheet])
@pytest.mark.parametrize("data", [b"", b"not a video " * 50], ids=["empty", "text"])
def test_what_is_no_video_is_refused(make: Callable[[bytes], bytes], data: bytes) -> None:
    """Proves that an unreadable file is a RenderFailed."""
    with pytest.raises(RenderFailed, match="could not be read"):
        make(data)


def test_each_variant_says_its_type() -> None:
    """Proves the media types, and that the values are the API's words."""
    assert {each.value: each.media_type for each in Variant} == {
        "video": "video/mp4", "thumbnail": "image/webp", "spritesheet": "image/jpeg"
    }  # fmt: skip
