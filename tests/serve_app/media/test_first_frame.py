"""Thumbnails from clients: what is refused before it is decoded, what becomes of the rest, and what makes two one."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from serve_app.errors import CorruptEntry, InvalidImage, TooLarge, UnsupportedImage
from serve_app.media import first_frame
from serve_app.media.first_frame import FirstFrame, digest_of, pixels_of, read_first_frame

NOISE = np.random.default_rng(1).integers(0, 255, (48, 64, 3)).astype(np.uint8)
PHOTO = Image.fromarray(NOISE)


def file(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def read(data: bytes, width: int = 64, height: int = 48, **limits: int) -> FirstFrame:
    return read_first_frame(data, width, height, **({"max_bytes": 10**6, "max_pixels": 10**6} | limits))


def pixels(data: bytes, width: int = 64, height: int = 48) -> Any:
    frame = read(data, width, height)
    return pixels_of(frame.data, frame.digest, width, height)


def test_a_picture_of_the_video_s_size_is_taken_as_it_is() -> None:
    """Pixel for pixel; its name is the SHA-256 of them."""
    frame = read(file(PHOTO))
    assert np.array_equal(pixels_of(frame.data, frame.digest, 64, 48), NOISE)
    assert frame.digest == digest_of(NOISE)


@pytest.mark.parametrize("size", [(64, 48), (32, 48), (96, 32)])
def test_the_same_picture_in_another_file_is_the_same_start(size: tuple[int, int]) -> None:
    """A JPEG decoded and saved again as PNG, lossless WebP or RGBA: one digest, whatever the video's size."""
    jpeg = file(PHOTO, "JPEG", quality=80)
    decoded = Image.open(io.BytesIO(jpeg)).convert("RGB")
    copies = [file(decoded), file(decoded, "WEBP", lossless=True), file(decoded.convert("RGBA"))]
    digests = {read(each, *size).digest for each in (jpeg, *copies)}
    assert len(digests) == 1
    assert read(file(PHOTO), *size).digest not in digests


def test_what_stands_over_is_cut_in_the_middle_and_nothing_is_distorted() -> None:
    """Of a wide picture the sides go, of a tall one top and bottom; a circle's box stays a square."""
    wide = Image.new("RGB", (300, 100), "white")
    wide.paste("black", (130, 30, 170, 70))
    (ys, xs) = np.nonzero(pixels(file(wide), 64, 64).mean(axis=2) < 128)
    assert abs(np.ptp(ys) - np.ptp(xs)) <= 1
    assert (xs.min() + xs.max()) / 2 == pytest.approx(31.5, abs=0.5)
    tall = Image.new("RGB", (100, 300), "red")
    tall.paste("blue", (0, 100, 100, 200))
    assert (pixels(file(tall), 32, 32) == (0, 0, 255)).mean() > 0.9


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=200)
def test_what_is_kept_has_the_video_s_shape(width: int, height: int, to_width: int, to_height: int) -> None:
    """The part that is kept lies inside the picture, in its middle, touches two sides, and has the aspect ratio."""
    left, top, right, bottom = first_frame._covering(width, height, to_width, to_height)
    assert 0 <= left <= right <= width + 1e-9
    assert 0 <= top <= bottom <= height + 1e-9
    assert left == pytest.approx(width - right)
    assert top == pytest.approx(height - bottom)
    assert left == pytest.approx(0) or top == pytest.approx(0)
    assert (right - left) * to_height == pytest.approx((bottom - top) * to_width)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_says_which_way_is_up(orientation: int) -> None:
    """A picture that a camera stored turned is shown upright, as Pillow's own reading of EXIF has it."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = file(PHOTO, "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(stored)))
    assert expected is not None
    assert np.array_equal(pixels(stored, *expected.size), np.asarray(expected))


def test_transparency_is_laid_on_white() -> None:
    """What is clear is white, what is half clear is half white; a palette with a clear colour too."""
    glass = Image.new("RGBA", (64, 48), (0, 0, 0, 0))
    glass.paste((0, 0, 0, 128), (0, 0, 32, 48))
    shown = pixels(file(glass))
    assert (shown[:, 40:] == 255).all()
    assert (shown[:, :30] == 127).all()
    palette = Image.new("P", (64, 48), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.paste(1, (0, 0, 32, 48))
    shown = pixels(file(palette, transparency=0))
    assert (shown[:, :30] == (255, 0, 0)).all()
    assert (shown[:, 34:] == 255).all()


def test_other_ways_to_store_colours() -> None:
    """Grey, 16 bits of grey, CMYK: each shows what it should, none is clipped."""
    assert (pixels(file(Image.new("L", (64, 48), 77))) == 77).all()
    deep = Image.fromarray(np.full((48, 64), 0x4D00, np.uint16))
    assert (pixels(file(deep)) == 0x4D).all()
    ink = pixels(file(Image.new("CMYK", (64, 48), (0, 255, 255, 0)), "JPEG", quality=100))
    assert np.abs(ink.astype(int) - (255, 0, 0)).max() < 8


def test_the_client_s_word_for_the_type_is_not_asked() -> None:
    """Only first bytes count: other formats Pillow could read, text and nothing are refused."""
    for data in (b"", b"GIF89a", file(PHOTO, "BMP"), file(PHOTO, "GIF"), file(PHOTO, "TIFF"), b"<svg/>", b"\xff\xd8"):
        with pytest.raises(InvalidImage, match="PNG, JPEG or WebP") as refused:
            read(data)
        assert refused.value.param == "input_reference"


def test_animations_are_refused() -> None:
    """A film is no first frame: animated PNG and WebP."""
    more = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
    for form in ("PNG", "WEBP"):
        with pytest.raises(InvalidImage, match="animation"):
            read(file(PHOTO, form, save_all=True, append_images=more))


@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.data())
@settings(max_examples=150, deadline=None)
def test_damage_is_told_not_raised(form: str, data: st.DataObject) -> None:
    """A file cut short or with any bytes changed is read or refused; nothing else comes out."""
    whole = bytearray(_FILES[form])
    for place in data.draw(st.lists(st.integers(12, len(whole) - 1), max_size=8)):
        whole[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(12, len(whole)))
    try:
        frame = read(bytes(whole[:cut]))
    except (InvalidImage, TooLarge):
        return
    assert pixels_of(frame.data, frame.digest, 64, 48).shape == (48, 64, 3)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_half_a_picture_is_none(form: str) -> None:
    """An upload that broke off is refused, however much of it could be shown; so is a picture of no size."""
    whole = file(PHOTO, form)
    for cut in (20, len(whole) // 2, len(whole) - 40):
        with pytest.raises(InvalidImage, match="damaged"):
            read(whole[:cut])
    for width, height in ((0, 48), (64, 0)):
        with pytest.raises(InvalidImage, match="damaged"):
            read(_png_of(width, height))


_FILES = {form: file(PHOTO.resize((16, 12)), form) for form in ("PNG", "JPEG", "WEBP")}


def test_bytes_and_pixels_are_limited() -> None:
    """Each limit is a 413 that names the number; what is just within both is read."""
    data = file(PHOTO)
    read(data, max_bytes=len(data), max_pixels=64 * 48)
    with pytest.raises(TooLarge, match="bytes; at most"):
        read(data, max_bytes=len(data) - 1)
    for form in ("PNG", "JPEG", "WEBP"):
        with pytest.raises(TooLarge, match="64x48 pixels; at most 3,071"):
            read(file(PHOTO, form), max_pixels=64 * 48 - 1)
    with pytest.raises(TooLarge, match="64x48"):
        read(file(PHOTO, "WEBP", lossless=True), max_pixels=3_000)
    with pytest.raises(TooLarge, match="64x48"):
        read(file(PHOTO.convert("RGBA"), "WEBP", exif=b"Exif\0\0"), max_pixels=3_000)


def _png_of(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_bomb_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file that says it has two thousand million pixels, or a JPEG with endless scans, costs no decoding."""

    def explode(*args: Any) -> None:
        raise AssertionError("decoded")

    endless = file(PHOTO, "JPEG", progressive=True) + b"\xff\xda" * 200
    monkeypatch.setattr(Image.Image, "load", explode)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", explode)
    for size in ((5_000, 5_000), (12_000, 9_000), (50_000, 40_000)):
        with pytest.raises(TooLarge, match="pixels"):
            read(_png_of(*size))
    huge = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0" + b"\0\0\0\0" + b"\xfe\x3f\0" * 2
    with pytest.raises(TooLarge, match="16383x16383"):
        read(huge)
    with pytest.raises(TooLarge, match="scans"):
        read(endless)


def test_what_travelled_is_verified() -> None:
    """Another picture, another size or a flipped bit under a digest is CorruptEntry, never a wrong first frame."""
    frame, other = read(file(PHOTO)), read(file(Image.new("RGB", (64, 48))))
    for data, digest, width in (
        (frame.data, other.digest, 64), (frame.data, frame.digest, 32), (frame.data[:-30], frame.digest, 64),
        (b"", frame.digest, 64), (file(PHOTO, "JPEG"), frame.digest, 64), (file(PHOTO.convert("L")), frame.digest, 64),
    ):  # fmt: skip
        with pytest.raises(CorruptEntry):
            pixels_of(data, digest, width, 48)


@pytest.mark.parametrize("size", [(1, first_frame.MAX_SIDE + 1), (first_frame.MAX_SIDE + 1, 1)])
def test_a_side_has_a_bound_of_its_own(size: tuple[int, int]) -> None:
    """Few pixels in very many rows are refused by the header alone: each row has a price in memory."""
    with pytest.raises(TooLarge, match="on a side"):
        read(file(Image.new("L", size)))


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_file_of_very_many_parts(form: str) -> None:
    """Empty chunks and segments without number are counted, not read; a few hundred do no harm."""
    data = file(PHOTO, form)
    at, empty = (
        (33, b"\0\0\0\0teST" + struct.pack(">I", zlib.crc32(b"teST"))) if form == "PNG" else (2, b"\xff\xfe\0\2")
    )
    assert read(data[:at] + empty * 500 + data[at:]).digest == read(data).digest
    with pytest.raises(TooLarge, match="parts"):
        read(data[:at] + empty * (first_frame.MAX_SECTIONS + 1) + data[at:], max_bytes=10**7)


def test_scans_count_by_the_pixels_they_go_over() -> None:
    """A progressive JPEG is read; one that goes over all its pixels more often than the largest may is not."""
    data = file(PHOTO, "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    more = data[:-2] + last * 30 + b"\xff\xd9"
    assert read(data).digest
    with pytest.raises(TooLarge, match="scans"):
        read(more, max_pixels=64 * 48)


def test_decoding_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that asks for more after its time gets an error that says what to do."""
    monkeypatch.setattr(first_frame, "MAX_SECONDS", -1.0)
    with pytest.raises(TooLarge, match="too long"):
        read(file(PHOTO))


@pytest.mark.parametrize(
    ("brand", "name"), [(b"heic", "HEIC"), (b"mif1", "HEIC"), (b"avif", "AVIF"), (b"isom", "film")]
)
def test_formats_that_are_not_read_are_named(brand: bytes, name: str) -> None:
    """A phone's HEIC is told apart from rubbish: 415, with what to save it as."""
    with pytest.raises(UnsupportedImage, match=f"{name}.*JPEG") as refused:
        read_first_frame(b"\x00\x00\x00\x18ftyp" + brand + bytes(40), 32, 32)
    assert (refused.value.status, refused.value.param) == (415, "input_reference")
