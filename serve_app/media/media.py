"""Frames to a finished MP4: H.264 in yuv420p, BT.709, index first, so that every browser plays it at once.

The same frames, fps and quality give the same bytes on any machine that runs the same PyAV wheel: no timestamps, one
thread, and the CPU-independent code paths of x264 and swscale. That is what lets a finished file be a cached value
whose key contains `encoder_fingerprint()`; a change of what this module writes bumps REVISION (a golden test
guards it). PyAV is imported only when something is encoded, because routers need nothing but the fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from serve_app.core import Frames
from serve_app.errors import RenderFailed

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.reformatter import Interpolation

REVISION = 1
THREADS = 1  # x264 splits its work by thread: another count is another file
# Not only for mixed clusters: without cpu-independent, one clip came out as nine different files within one process,
# depending on what x264's heap held before.
CODEC_OPTIONS = {"preset": "medium", "x264-params": "cpu-independent=1"}
CONTAINER_OPTIONS = {"movflags": "+faststart", "fflags": "+bitexact"}
SCALER_FLAGS = ("BICUBIC", "FULL_CHR_H_INP", "ACCURATE_RND", "BITEXACT")
BT709 = 1  # primaries, transfer and matrix share this number: ITU-T H.273, tables 2 to 4
LIMITED_RANGE = 1  # luma 16 to 235, AVCOL_RANGE_MPEG


def encode_mp4(frames: Frames, *, fps: int, quality: int = 23) -> bytes:
    """Encode uint8 RGB frames [num_frames, height, width, 3] and return the file.

    `quality` is x264's constant rate factor, 0 (lossless) to 51. Raises RenderFailed for frames that are no such
    array or have an odd side (yuv420p halves both), for numbers out of range, and when libav fails.
    """
    _check(frames, fps, quality)
    import av

    # A real folder, because faststart opens the finished file a second time by its name to move the index.
    with tempfile.TemporaryDirectory(prefix="encore-mp4-") as folder:
        path = Path(folder) / "video.mp4"
        try:
            _write(path, frames, fps, quality)
            return path.read_bytes()
        except (av.FFmpegError, OSError) as error:
            raise RenderFailed(f"The video could not be encoded: {error.strerror}.") from error  # no path


@cache
def encoder_fingerprint() -> str:
    """Return 64 hex digits for all that decides the bytes of a file apart from frames, fps and quality.

    The wheel of PyAV bundles libav* and libx264 under names with a content hash, so its metadata alone tells the
    codec build, and PyAV (0.2 s) need not be imported. A PyAV built against a system's libraries lists none; then
    it is imported and asked.
    """
    parts = {
        "revision": REVISION,
        "codec": ["libx264", "yuv420p", CODEC_OPTIONS, THREADS],
        "container": ["mp4", CONTAINER_OPTIONS],
        "colour": [SCALER_FLAGS, BT709, LIMITED_RANGE],
        "av": metadata.version("av"),
        "libraries": _libraries(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def scaler_flags(names: Iterable[str] = SCALER_FLAGS) -> Interpolation:
    """Return swscale's flags of these names as PyAV wants them; with BITEXACT it converts alike on every machine."""
    from av.video.reformatter import Interpolation

    flags = Interpolation(0)
    for name in names:
        flags |= Interpolation[name]
    return flags


def _libraries() -> list[str]:
    files = metadata.files("av") or ()
    bundled = sorted(file.name for file in files if file.parent.name in ("av.libs", ".dylibs"))
    if bundled:
        return bundled
    import av

    return [f"{name} {version}" for name, version in sorted(av.library_versions.items())]


def _check(frames: Frames, fps: int, quality: int) -> None:
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise RenderFailed(f"Frames must be uint8 [num_frames, height, width, 3], not {frames.dtype} {frames.shape}.")
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise RenderFailed(f"Width and height must be even for H.264 yuv420p, not {frames.shape[2]}x{frames.shape[1]}.")
    if fps < 1 or not 0 <= quality <= 51:
        raise RenderFailed(f"fps must be at least 1 and quality 0 to 51, not {fps} and {quality}.")


def _write(path: Path, frames: Frames, fps: int, quality: int) -> None:
    import av

    with av.open(path, "w", format="mp4", options=CONTAINER_OPTIONS) as container:
        stream = container.add_stream("libx264", rate=fps, options={**CODEC_OPTIONS, "crf": str(quality)})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.thread_count = THREADS
        codec.time_base = Fraction(1, fps)
        codec.color_primaries = codec.color_trc = codec.colorspace = BT709
        codec.color_range = LIMITED_RANGE
        for picture in _pictures(frames, codec.time_base):
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def _pictures(frames: Frames, time_base: Fraction) -> Iterator[VideoFrame]:
    """Convert to yuv420p one frame at a time, so that a long video is never in memory twice."""
    import av
    from av.video.reformatter import VideoReformatter

    flags = scaler_flags()
    scaler = VideoReformatter()
    for index, frame in enumerate(frames):
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture = scaler.reformat(
            rgb,
            format="yuv420p",
            dst_colorspace=BT709,
            dst_color_range=LIMITED_RANGE,
            interpolation=flags,
            threads=THREADS,
        )
        picture.color_primaries = picture.color_trc = BT709
        picture.pts, picture.duration, picture.time_base = index, 1, time_base
        yield picture
