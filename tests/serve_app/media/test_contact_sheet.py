"""Contact sheets: every frame in its place, in a PNG that another reader understands."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from serve_app.core import Frames
from serve_app.errors import RenderFailed
from serve_app.media import contact_sheet, encode_mp4

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]


def coloured() -> Frames:
    return np.stack([np.full((16, 32, 3), colour, np.uint8) for colour in COLOURS])


def picture(png: bytes) -> Frames:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    with av.open(io.BytesIO(png), "r") as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def test_frames_are_laid_out_in_reading_order() -> None:
    """Proves that frame n is in row n // columns and column n % columns, exact to the pixel, the rest black."""
    sheet = picture(contact_sheet(coloured(), columns=3))
    assert sheet.shape == (2 * 16, 3 * 32, 3)
    for index, colour in enumerate([*COLOURS, (0, 0, 0)]):
        row, column = divmod(index, 3)
        cell = sheet[row * 16 : (row + 1) * 16, column * 32 : (column + 1) * 32]
        assert (cell == colour).all()


def test_fewer_frames_than_columns_make_one_row() -> None:
    """Proves that the sheet is no wider than its frames."""
    assert picture(contact_sheet(coloured(), columns=9)).shape == (16, 5 * 32, 3)


def test_a_file_is_as_good_as_frames() -> None:
    """Proves that an MP4 gives the sheet of its frames, up to what the codec lost."""
    sheet = picture(contact_sheet(encode_mp4(coloured(), fps=4), columns=3))
    assert np.abs(sheet[8, 16].astype(int) - COLOURS[0]).max() < 16
    assert np.abs(sheet[24, 48].astype(int) - COLOURS[4]).max() < 16


@pytest.mark.parametrize(
    ("video", "columns"),
    [(coloured(), 0), (coloured()[0], 3), (coloured()[:0], 3), (b"no video", 3)],
    ids=["no columns", "one picture", "no frames", "no file"],
)
def test_what_makes_no_sheet_is_refused(video: Frames | bytes, columns: int) -> None:
    """Proves that bad input is a RenderFailed."""
    with pytest.raises(RenderFailed):
        contact_sheet(video, columns=columns)
