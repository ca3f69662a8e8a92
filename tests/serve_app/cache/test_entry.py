"""What goes into a frame comes out of it, and nothing else ever does."""

from __future__ import annotations

import hashlib
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.cache.entry import pack, unpack
from serve_app.core import Entry
from serve_app.errors import CorruptEntry

KEY = "ab" * 32
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
metas = st.dictionaries(st.text(), scalars | st.lists(scalars), max_size=5)
entries = st.builds(Entry.of, st.just(KEY), st.binary(max_size=200), metas)


@given(entries)
def test_round_trip(entry: Entry) -> None:
    """Any bytes with any JSON metadata come back equal."""
    assert unpack(KEY, pack(entry)) == entry


@given(entries, st.data())
def test_any_flipped_bit_is_found(entry: Entry, data: st.DataObject) -> None:
    """One flipped bit anywhere, header included, makes the frame corrupt."""
    frame = bytearray(pack(entry))
    position = data.draw(st.integers(0, len(frame) - 1))
    frame[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CorruptEntry):
        unpack(KEY, bytes(frame))


@given(entries, st.data())
def test_any_truncation_or_extension_is_found(entry: Entry, data: st.DataObject) -> None:
    """A frame cut anywhere, or with bytes behind its end, is corrupt."""
    frame = pack(entry)
    with pytest.raises(CorruptEntry):
        unpack(KEY, frame[: data.draw(st.integers(0, len(frame) - 1))])
    with pytest.raises(CorruptEntry):
        unpack(KEY, frame + data.draw(st.binary(min_size=1, max_size=20)))


@given(st.binary(max_size=200))
def test_noise_is_found(noise: bytes) -> None:
    """Bytes that never were a frame are corrupt, whatever they are."""
    with pytest.raises(CorruptEntry):
        unpack(KEY, noise)


def test_a_swapped_object_is_found() -> None:
    """A whole frame stored under another key does not pass for this one."""
    with pytest.raises(CorruptEntry, match="another key"):
        unpack(KEY, pack(Entry.of("cd" * 32, b"data")))


@pytest.mark.parametrize("header", [b"[]", b"{}", b"\xff", b'{"key": "x"}'], ids=str)
def test_a_signed_header_of_another_form_is_found(header: bytes) -> None:
    """A header with a right digest but without our fields is corrupt, not a crash."""
    prefix = struct.pack(">4sBI", b"ENCR", 1, len(header))
    with pytest.raises(CorruptEntry):
        unpack(KEY, prefix + hashlib.sha256(prefix + header).digest() + header)


def test_metadata_that_is_not_json_is_refused() -> None:
    """NaN would not survive every JSON reader and is refused when packing."""
    with pytest.raises(ValueError, match="JSON"):
        pack(Entry.of(KEY, b"", {"seconds": float("nan")}))


def test_the_format_of_the_frame_is_pinned() -> None:
    """Frames written by an earlier release must stay readable: the bytes of one frame are fixed here."""
    header = json.dumps(
        {"digest": hashlib.sha256(b"mp4").hexdigest(), "key": KEY, "length": 3, "meta": {"steps": 4}},
        separators=(",", ":"),
    ).encode()
    prefix = b"ENCR\x01" + len(header).to_bytes(4, "big")
    assert (
        pack(Entry.of(KEY, b"mp4", {"steps": 4})) == prefix + hashlib.sha256(prefix + header).digest() + header + b"mp4"
    )
