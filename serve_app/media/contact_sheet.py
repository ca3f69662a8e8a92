"""All frames of a video in one PNG, left to right and top to bottom, as photographers print a roll of film.

One look tells whether a video moves, flickers or is black, so tests and the command line use it, and sprite sheets
are laid out alike.
"""

from __future__ import annotations

import numpy as np

from serve_app.core import Frames, Picture
from serve_app.errors import RenderFailed
from serve_app.media.picture import encode_picture
from serve_app.media.probe import decode_mp4


def contact_sheet(video: Frames | bytes, *, columns: int = 4) -> bytes:
    """Return a PNG of all frames, `columns` to a row; unused cells of the last row are black.

    video: uint8 RGB [num_frames, height, width, 3] or an MP4 file. Raises RenderFailed for an unreadable file, for
    columns below 1, and when libav fails.
    """
    frames = decode_mp4(video) if isinstance(video, bytes) else video
    if columns < 1 or frames.ndim != 4 or not frames.size:
        raise RenderFailed(f"A contact sheet wants frames and at least one column, not {frames.shape} and {columns}.")
    return encode_picture(tiled(frames, min(columns, len(frames))), "png")


def tiled(frames: Frames, columns: int) -> Picture:
    """Return all frames [num_frames, height, width, 3] in one picture, `columns` to a row, unused cells black."""
    num_frames, height, width, channels = frames.shape
    rows = -(-num_frames // columns)
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[:num_frames] = frames
    grid = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, channels)
