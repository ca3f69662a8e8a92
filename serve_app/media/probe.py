"""Reading MP4 files: what a finished video is, and its frames.

The server never needs this on its way to a video; tests, the command line and thumbnails do, and what they want to
know is what a player would see. So everything is read from the file itself and nothing from what we meant to write.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from serve_app.core import Frames
from serve_app.errors import RenderFailed
from serve_app.media.media import scaler_flags

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

# Without FULL_CHR_H_INT, ACCURATE_RND makes every colour 2 or 3 of 255 darker on the way from yuv420p to RGB.
READING_FLAGS = ("BICUBIC", "FULL_CHR_H_INT", "ACCURATE_RND", "BITEXACT")


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a player learns from the header. `seconds` is playing time; `faststart` is index before pictures."""

    width: int
    height: int
    num_frames: int
    fps: float
    seconds: float
    codec: str
    pix_fmt: str
    faststart: bool


def probe(data: bytes) -> VideoInfo:
    """Read the header of an MP4 file; RenderFailed when it is not one with a picture in it."""
    with _opened(data) as container:
        stream = container.streams.video[0]
        return VideoInfo(
            width=stream.width,
            height=stream.height,
            num_frames=stream.frames,
            fps=float(stream.average_rate or 0),
            seconds=float((stream.duration or 0) * stream.time_base) if stream.time_base else 0.0,
            codec=stream.codec_context.name,
            pix_fmt=stream.codec_context.pix_fmt or "",
            faststart=_index_first(data),
        )


def decode_mp4(data: bytes) -> Frames:
    """Return all frames of an MP4 file as uint8 RGB [num_frames, height, width, 3]; RenderFailed when it has none."""
    with _opened(data) as container:
        frames = [_rgb(frame) for frame in container.decode(container.streams.video[0])]
    if not frames:
        raise RenderFailed("The video could not be read: it has no frames.")
    return np.stack(frames)


def decode_some(data: bytes, choose: Callable[[int], Sequence[int]], *, max_side: int | None = None) -> Frames:
    """Return the frames that `choose(num_frames)` names by ascending index, as uint8 RGB [chosen, height, width, 3].

    Larger ones are scaled down until no side is longer than `max_side`. Nothing behind the last one is decoded, and
    only the chosen ones are ever in memory together. Raises RenderFailed for what is no video, or has fewer frames
    than it says.
    """
    with _opened(data) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # a picture takes no core from a render beside it
        wanted = choose(stream.frames) if stream.frames else ()
        decoded = zip(range(max(wanted, default=-1) + 1), container.decode(stream), strict=False)
        frames = [_scaled(frame, max_side) for index, frame in decoded if index in wanted]
    if not frames or len(frames) < len(wanted):
        raise RenderFailed("The video could not be read: frames are missing.")
    return np.stack(frames)


def boxes(data: bytes) -> Iterator[str]:
    """Yield the names of the file's top-level boxes in order (ISO/IEC 14496-12, 4.2); stops at a broken one."""
    start = 0
    while start + 8 <= len(data):
        size, name = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8]
        if size == 1:  # the real size follows the name, in 64 bits
            size = int.from_bytes(data[start + 8 : start + 16])
        yield name.decode("latin-1")
        if size < 8:  # 0 means up to the end of the file, 2 to 7 cannot be
            return
        start += size


def _index_first(data: bytes) -> bool:
    order = [name for name in boxes(data) if name in ("moov", "mdat")]
    return order[:1] == ["moov"]


def _rgb(frame: VideoFrame) -> Frames:
    return np.asarray(frame.to_ndarray(format="rgb24", interpolation="BICUBIC"), dtype=np.uint8)


def _scaled(frame: VideoFrame, max_side: int | None) -> Frames:
    ratio = 1.0 if max_side is None else min(1.0, max_side / max(frame.width, frame.height))
    width, height = (max(1, round(side * ratio)) for side in (frame.width, frame.height))
    small = frame.reformat(width, height, format="rgb24", interpolation=scaler_flags(READING_FLAGS), threads=1)
    return np.asarray(small.to_ndarray(), dtype=np.uint8)


@contextmanager
def _opened(data: bytes) -> Iterator[InputContainer]:
    import av

    try:
        with av.open(io.BytesIO(data), "r", format="mp4") as container:
            if not container.streams.video:
                raise RenderFailed("The video could not be read: it has no picture.")
            yield container
    except av.FFmpegError as error:
        raise RenderFailed(f"The video could not be read: {error.strerror}.") from error
