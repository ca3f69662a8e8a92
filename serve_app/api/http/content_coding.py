"""Content codings of request bodies (RFC 9110, section 8.4): gzip, deflate and identity, several of them in a list.

A body is decoded while it arrives, and never to more than the caller allows: a small body that stands for a huge one
(a decompression bomb) is refused as soon as it passes that. A stream that is cut, damaged or followed by something is
refused as a whole, like every body.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable

from serve_app.errors import EncoreError, InvalidRequest, UnsupportedCoding

MAX_CODINGS = 4
_MAX_MEMBERS = 1_000
"""A gzip file may be several, one after the other; each costs a decoder of its own."""
_PIECE = 65_536
_GZIP, _ZLIB, _RAW = 31, 15, -15
"""Values of zlib's `wbits`."""


class Decoder:
    """Decodes one body; `limit` bounds the decoded bytes, `too_large` makes the error for more."""

    def __init__(self, codings: Iterable[str], limit: int, too_large: Callable[[], EncoreError]) -> None:
        self._stages = [_Stage(coding, limit, too_large) for coding in reversed(list(codings))]

    @property
    def has_codings(self) -> bool:
        """Whether decoding is more than passing on."""
        return bool(self._stages)

    def feed(self, data: bytes) -> bytes:
        """Return what `data` adds to the decoded body; raises InvalidRequest, and what `too_large` makes."""
        for stage in self._stages:
            data = stage.feed(data)
        return data

    def finish(self) -> None:
        """Raise InvalidRequest if the body was not complete."""
        for stage in self._stages:
            stage.finish()


class _Stage:
    def __init__(self, coding: str, limit: int, too_large: Callable[[], EncoreError]) -> None:
        self._coding = coding
        self._left = limit
        self._too_large = too_large
        self._members = 0
        self._start = b""
        self._inflate = zlib.decompressobj(_GZIP) if coding == "gzip" else None

    def feed(self, data: bytes) -> bytes:
        try:
            return b"".join(self._piece(data[at : at + _PIECE]) for at in range(0, len(data), _PIECE))
        except zlib.error:
            raise self._malformed("is damaged") from None

    def finish(self) -> None:
        if self._inflate is None or not self._inflate.eof:
            raise self._malformed("ends too early")

    def _piece(self, data: bytes) -> bytes:
        if self._inflate is None:
            self._start += data
            if len(self._start) < 2:
                return b""
            data = self._start
            self._inflate = zlib.decompressobj(_ZLIB if _is_zlib(data) else _RAW)
        out = bytearray()
        while data:
            if self._inflate.eof:
                self._inflate = self._next_member(data)
            made = self._inflate.decompress(data, self._left + 1)
            self._left -= len(made)
            if self._left < 0:
                raise self._too_large()
            out += made
            data = self._inflate.unused_data or self._inflate.unconsumed_tail
        return bytes(out)

    def _next_member(self, data: bytes) -> zlib._Decompress:
        self._members += 1
        if self._coding != "gzip" or data[0] != 0x1F or self._members >= _MAX_MEMBERS:
            raise self._malformed("is followed by something else")
        return zlib.decompressobj(_GZIP)

    def _malformed(self, how: str) -> InvalidRequest:
        return InvalidRequest(f"The body's content coding '{self._coding}' {how}.", param="Content-Encoding")


def _is_zlib(start: bytes) -> bool:
    """Tell zlib's format, which is what `deflate` means, from the bare one that some clients send under its name."""
    return start[0] & 0x0F == 8 and (start[0] << 8 | start[1]) % 31 == 0


def codings_of(fields: Iterable[str]) -> list[str]:
    """Return the codings that Content-Encoding fields name, in the order they were applied; raises UnsupportedCoding.

    `identity` is none, and `x-gzip` another name of gzip.
    """
    named = [each.strip().lower() for each in ",".join(fields).split(",")]
    codings = [each.removeprefix("x-") if each == "x-gzip" else each for each in named if each not in ("", "identity")]
    for coding in codings:
        if coding not in ("gzip", "deflate"):
            raise UnsupportedCoding(
                f"Content-Encoding '{coding[:100]}' is not decoded here; send gzip, deflate, or the body as it is.",
                param="Content-Encoding",
            )
    if len(codings) > MAX_CODINGS:
        raise UnsupportedCoding(f"At most {MAX_CODINGS} content codings are decoded.", param="Content-Encoding")
    return codings
