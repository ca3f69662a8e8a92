"""A client's picture as the first frame of a video: read safely, fitted once, named by its pixels.

What decides is content, never what the client says it is: the type by its first bytes, the name by the SHA-256 of the
pixels after fitting, so that a picture and a lossless copy of it in another file are one and the same start.

Fitting is scaling until the frame is covered (Lanczos), and cutting what stands over at both ends. OpenAI's API refuses
pictures that are not of the video's size; here a product photo need not be cut beforehand, and other ways to make it
fit would show: diffusers' own resizing distorts shapes, and bars beside a picture become part of the scene and move.
A picture that has the video's size is taken pixel for pixel. It is turned as its EXIF says; where it is transparent it
is laid on white; colour profiles are not applied, as in diffusers.

Pillow reads it, which diffusers needs anyway: libav knows neither EXIF nor where a picture ends.
"""

from __future__ import annotations

import hashlib
import io
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from serve_app.core import Picture
from serve_app.errors import CorruptEntry, InvalidImage, TooLarge, UnsupportedImage

if TYPE_CHECKING:
    from PIL import Image

PARAM = "input_reference"
MAX_BYTES, MAX_PIXELS = 10 * 2**20, 40_000_000
MAX_SIDE = 32_768
"""Of width and height alone: each row has a price of its own, so 1 x 40,000,000 pixels would take gigabytes."""
MAX_SCANS, SCANNED_ANEW = 128, 16
"""Of a JPEG: a progressive one has about ten, each is a pass over all pixels, and thousands of them fit into a file. No
more, and no more pixels in all of them than the largest allowed picture has in so many."""
MAX_SECTIONS = 20_000
"""Of a PNG's chunks and a JPEG's segments: millions of empty ones fit into a file, and each takes some microseconds."""
MAX_SECONDS = 10.0
"""Of processor time for decoding; the slowest that is within the other limits has taken a third of it."""
_COMPRESSION = 3  # of PNG's 0 to 9: beyond it a photo gets little smaller and takes twice the time
_HEIC = "a HEIC picture, which is not read here (its decoders are not free to ship); save it as a JPEG."
_AVIF = "an AVIF picture, which is not read here; save it as a JPEG, PNG or WebP."
_FILM = "a film or a picture of that family, which is not read here; send a PNG, JPEG or WebP file."
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_ISO = dict.fromkeys(_HEIC_BRANDS, _HEIC) | dict.fromkeys((b"avif", b"avis"), _AVIF)
_WHITE = (255, 255, 255, 255)


@dataclass(frozen=True, slots=True)
class FirstFrame:
    """`digest`: SHA-256 of the fitted pixels, 64 hex digits; `data`: those pixels as a PNG."""

    digest: str
    data: bytes


def read_first_frame(
    data: bytes, width: int, height: int, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS
) -> FirstFrame:
    """Return a PNG, JPEG or WebP file as the first frame of a video of this size.

    Raises TooLarge for a file or a picture over the limits, before a pixel of it is decoded, UnsupportedImage for HEIC
    and AVIF, and InvalidImage for what is none of the three, is damaged, or moves.
    """
    if len(data) > max_bytes:
        raise TooLarge(f"The image has {len(data):,} bytes; at most {max_bytes:,} are allowed.", param=PARAM)
    form = _form(data)
    if form == "WEBP":
        _check_size(*_webp_size(data), max_pixels)  # Pillow would take memory for all of it on opening it
    _check_sections(data, form)
    picture = _fitted(_opened(data, form, max_pixels), width, height)
    pixels = np.asarray(picture, dtype=np.uint8)
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=_COMPRESSION)
    return FirstFrame(digest_of(pixels), file.getvalue())


def pixels_of(data: bytes, digest: str, width: int, height: int) -> Picture:
    """Return the pixels [height, width, 3] of a FirstFrame's data; CorruptEntry when they are not those of `digest`."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            pixels = np.array(picture, dtype=np.uint8) if picture.size == (width, height) else np.empty(0, np.uint8)
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over
        raise CorruptEntry(f"The first frame cannot be read: {type(error).__name__}.") from error
    if pixels.shape != (height, width, 3) or digest_of(pixels) != digest:
        raise CorruptEntry("The first frame is not the one that was asked for.")
    return pixels


def digest_of(pixels: Picture) -> str:
    """Return the name of a first frame: SHA-256 of its RGB bytes, row by row."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _form(data: bytes) -> str:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":  # ISO 14496-12: HEIF, AVIF, and films
        raise UnsupportedImage(f"'input_reference' is {_ISO.get(data[8:12], _FILM)}", param=PARAM)
    raise InvalidImage(
        "'input_reference' is no picture that is understood; send a PNG, JPEG or WebP file.", param=PARAM
    )


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return width and height of a WebP file (RFC 9649, sections 2.5 to 2.7)."""
    kind, body = data[12:16], data[20:30]
    if len(body) == 10 and kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if len(body) == 10 and kind == b"VP8L" and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if len(body) == 10 and kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", body[6:10])
        return width & 0x3FFF, height & 0x3FFF
    raise _damaged()


def _check_sections(data: bytes, form: str) -> None:
    """Raise TooLarge for more parts than any picture has, without reading what is in them."""
    at, sections = (8, 0) if form == "PNG" else (2, 0)
    while form != "WEBP" and at + 4 <= len(data) and sections <= MAX_SECTIONS:
        sections += 1
        if form == "PNG":
            at += 12 + int.from_bytes(data[at : at + 4], "big")
        elif data[at] != 0xFF or data[at + 1] in (0xD9, 0xDA):  # the pixels begin, or it is damaged
            break
        else:
            at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    if sections > MAX_SECTIONS:
        raise TooLarge(f"The image's file has more than {MAX_SECTIONS:,} parts; save it anew.", param=PARAM)


def _check_scans(data: bytes, pixels: int, max_pixels: int) -> None:
    """Raise TooLarge for a JPEG that goes over its pixels too often; the marker stands nowhere within a scan."""
    scans = data.count(b"\xff\xda")
    if scans > MAX_SCANS or scans * pixels > SCANNED_ANEW * max_pixels:
        raise TooLarge(
            f"The image has {scans} scans, more than are read at its size; save it as an ordinary JPEG.", param=PARAM
        )


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if max(width, height) > MAX_SIDE:
        raise TooLarge(
            f"The image has {width}x{height} pixels; at most {MAX_SIDE:,} are allowed on a side.", param=PARAM
        )
    if width * height > max_pixels:
        raise TooLarge(
            f"The image has {width}x{height} pixels; at most {max_pixels:,} in all are allowed.", param=PARAM
        )


def _opened(data: bytes, form: str, max_pixels: int) -> Image.Image:
    """Return the decoded picture in RGB or RGBA, the right way up; its size is checked between header and pixels."""
    from PIL import Image

    try:
        picture = Image.open(_Timed(data), formats=(form,))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"The image has too many pixels; at most {max_pixels:,} are allowed.", param=PARAM) from error
    except TooLarge:
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over
        raise _damaged() from error
    _check_size(*picture.size, max_pixels)
    if form == "JPEG":
        _check_scans(data, picture.width * picture.height, max_pixels)
    if getattr(picture, "is_animated", False) and picture.format != "MPO":  # a phone's JPEG with a depth map in it
        raise InvalidImage("'input_reference' is an animation; send one picture.", param=PARAM)
    try:
        picture.load()
        return _turned(_in_colour(picture), picture)
    except TooLarge:
        raise
    except Exception as error:
        raise _damaged() from error


class _Timed(io.BytesIO):
    """A file that can be read for MAX_SECONDS of its reader's processor time: decoders come back for more of it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._until = time.thread_time() + MAX_SECONDS

    def read(self, size: int | None = -1, /) -> bytes:
        """Read on; raises TooLarge when the time is over."""
        if time.thread_time() > self._until:
            raise TooLarge("The image takes too long to read; send it with fewer pixels or as a JPEG.", param=PARAM)
        return super().read(size)


def _in_colour(picture: Image.Image) -> Image.Image:
    from PIL import Image

    if picture.mode.startswith(("I", "F")):  # 16 bits of grey, which Pillow would clip at 255
        grey = np.asarray(picture).clip(0, 65_535).astype(np.uint16) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    see_through = picture if picture.mode == "RGBA" else picture.convert("RGBA")
    opaque = see_through.getchannel("A").getextrema() == (255, 255)
    return see_through.convert("RGB") if opaque else see_through


def _turned(picture: Image.Image, original: Image.Image) -> Image.Image:
    """Return the picture the way its camera was held (Exif 2.3, tag Orientation)."""
    from PIL import Image

    way = Image.Transpose
    turns = {
        2: way.FLIP_LEFT_RIGHT, 3: way.ROTATE_180, 4: way.FLIP_TOP_BOTTOM, 5: way.TRANSPOSE, 6: way.ROTATE_270,
        7: way.TRANSVERSE, 8: way.ROTATE_90,
    }  # fmt: skip
    try:
        orientation = original.getexif().get(0x0112)
    except Exception:  # damaged EXIF in a sound picture: every viewer shows it, unturned
        orientation = None
    return picture.transpose(turns[orientation]) if orientation in turns else picture


def _fitted(picture: Image.Image, width: int, height: int) -> Image.Image:
    from PIL import Image

    scaled = picture.resize((width, height), Image.Resampling.LANCZOS, box=_covering(*picture.size, width, height))
    if scaled.mode == "RGB":
        return scaled
    return Image.alpha_composite(Image.new("RGBA", scaled.size, _WHITE), scaled).convert("RGB")


def _covering(width: int, height: int, to_width: int, to_height: int) -> tuple[float, float, float, float]:
    """Return the largest part in the middle that has the video's aspect ratio: left, top, right, bottom."""
    kept_width = min(width, height * to_width / to_height)
    kept_height = min(height, width * to_height / to_width)
    left, top = (width - kept_width) / 2, (height - kept_height) / 2
    return left, top, left + kept_width, top + kept_height


def _damaged() -> InvalidImage:
    return InvalidImage("'input_reference' is a damaged picture.", param=PARAM)
