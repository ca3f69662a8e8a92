"""Single pictures: three forms that another reader understands, the same bytes for the same pixels."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np
import pytest

from serve_app.core import Picture
from serve_app.errors import RenderFailed
from serve_app.media.picture import FORMS, encode_picture

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 180, 20)]
SIGNATURES = {"png": b"\x89PNG\r\n\x1a\n", "webp": b"RIFF", "jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF"}


def stripes(height: int = 48) -> Picture:
    """Four vertical stripes, 32 pixels wide each."""
    return np.repeat(np.array([COLOURS], np.uint8), 32, axis=1).repeat(height, axis=0)


def seen(data: bytes) -> Picture:
    with av.open(io.BytesIO(data), "r") as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


@pytest.mark.parametrize("form", FORMS)
def test_a_reader_sees_the_picture(form: str) -> None:
    """Proves signature, size and colours of each form; only what lossy chroma costs is lost, and PNG loses nothing."""
    data = encode_picture(stripes(), form)
    assert data.startswith(SIGNATURES[form])
    assert seen(data).shape == (48, 128, 3)
    for index, colour in enumerate(COLOURS):
        lost = np.abs(seen(data)[4:-4, 32 * index + 4 : 32 * index + 28].astype(int) - colour).max()
        assert lost <= (0 if form == "png" else 4)


@pytest.mark.parametrize("form", FORMS)
def test_the_same_pixels_are_the_same_bytes(form: str) -> None:
    """Proves that neither repetition nor the layout in memory changes a file, and that no encoder is named in it."""
    first = encode_picture(stripes(), form)
    turned = np.asfortranarray(stripes())
    assert [encode_picture(stripes(), form), encode_picture(turned, form)] == [first, first]
    assert b"Lavc" not in first


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 2)])
def test_any_size(form: str, shape: tuple[int, int]) -> None:
    """Proves that odd and tiny pictures keep their size."""
    assert seen(encode_picture(np.full((*shape, 3), 90, np.uint8), form)).shape == (*shape, 3)


def test_what_libav_refuses_is_a_failed_render(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that foreign errors are mapped."""
    broken: Any = FORMS["jpeg"]._replace(pix_fmt="yuv420p")  # full-range colours under a limited-range name
    monkeypatch.setitem(FORMS, "jpeg", broken)
    with pytest.raises(RenderFailed, match="could not be encoded"):
        encode_picture(stripes(), "jpeg")
