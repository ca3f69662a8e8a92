"""One picture as a PNG, WebP or JPEG file: what contact sheets, thumbnails and sprite sheets are stored as.

PyAV writes all three, which saves an imaging library. As for videos, the same pixels give the same bytes: one thread,
swscale's exact code paths, and no name of the encoder in the file.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple, cast

import numpy as np

from serve_app.core import Picture
from serve_app.errors import RenderFailed
from serve_app.media.media import scaler_flags

BT601, FULL_RANGE = 5, 2  # what JFIF says of its colours: ITU-T H.273 table 4, and AVCOL_RANGE_JPEG
JPEG_QUALITY = 3 * 118  # quantiser 3 of 1 (best) to 31, in libav's lambda units (FF_QP2LAMBDA)


class _Form(NamedTuple):
    codec: str
    pix_fmt: str
    options: dict[str, str]
    colours: dict[str, Any]


FORMS = {
    "png": _Form("png", "rgb24", {}, {}),
    "webp": _Form("libwebp", "bgra", {"quality": "80"}, {}),  # libwebp makes its own chroma out of RGB
    "jpeg": _Form(
        "mjpeg",
        "yuvj420p",
        {"flags": "+qscale+bitexact", "global_quality": str(JPEG_QUALITY)},
        {"dst_colorspace": BT601, "dst_color_range": FULL_RANGE},
    ),
}


def encode_picture(picture: Picture, form: str) -> bytes:
    """Return `picture`, uint8 RGB [height, width, 3], as a file of `form`: `png` (lossless), `webp` or `jpeg`.

    Raises RenderFailed when libav fails.
    """
    import av
    from av.video.reformatter import VideoReformatter

    codec_name, pix_fmt, options, colours = FORMS[form]
    try:
        codec = cast(av.VideoCodecContext, av.CodecContext.create(codec_name, "w"))
        codec.height, codec.width = picture.shape[:2]
        codec.pix_fmt, codec.options, codec.thread_count = pix_fmt, options, 1
        codec.time_base = codec.sample_aspect_ratio = Fraction(1)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame = VideoReformatter().reformat(frame, format=pix_fmt, interpolation=scaler_flags(), threads=1, **colours)
        frame.pts = 0
        return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])
    except av.FFmpegError as error:
        raise RenderFailed(f"The picture could not be encoded: {error.strerror}.") from error
