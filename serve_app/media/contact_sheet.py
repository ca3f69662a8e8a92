"""All frames of a video in one PNG, left to right and top to bottom, as photographers print a roll of film.

One look tells whether a video moves, flickers or is black, so tests, the command line and thumbnails use it. PyAV
writes the PNG too, which saves an imaging library.
"""

from __future__ import annotations

import numpy as np

from serve_app.core import Frames
from serve_app.errors import RenderFailed
from serve_app.media.probe import decode_mp4


def contact_sheet(video: Frames | bytes, *, columns: int = 4) -> bytes:
    """Return a PNG of all frames, `columns` to a row; unused cells of the last row are black.

    video: uint8 RGB [num_frames, height, width, 3] or an MP4 file. Raises RenderFailed for an unreadable file, for
    columns below 1, and when libav fails.
    """
    frames = decode_mp4(video) if isinstance(video, bytes) else video
    if columns < 1 or frames.ndim != 4 or not frames.size:
        raise RenderFailed(f"A contact sheet wants frames and at least one column, not {frames.shape} and {columns}.")
    return _png(_tiled(frames, min(columns, len(frames))))


def _tiled(frames: Frames, columns: int) -> Frames:
    num_frames, height, width, channels = frames.shape
    rows = -(-num_frames // columns)
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[:num_frames] = frames
    grid = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, channels)


def _png(picture: Frames) -> bytes:
    import av

    try:
        codec = av.VideoCodecContext.create("png", "w")
        codec.height, codec.width = picture.shape[:2]
        codec.pix_fmt = "rgb24"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])
    except av.FFmpegError as error:
        raise RenderFailed(f"The picture could not be encoded: {error.strerror}.") from error
