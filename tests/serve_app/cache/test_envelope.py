"""What goes into a frame comes out of it, and nothing else ever does, whoever wrote it."""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.cache.envelope import HEAD_BYTES, Envelope, FormerFrame, claims, former_key, is_former, whole
from serve_app.cache.objects.maintenance import fault
from serve_app.cache.objects.s3_redirect import frame_metadata
from serve_app.cache.objects.saved_seconds import UNKNOWN_SECONDS, cost_seconds
from serve_app.cache.storage_name import storage_name
from serve_app.cache.store_secret import was_made_for
from serve_app.core import Entry
from serve_app.errors import CorruptEntry

SECRET, KEY = b"a secret of tests", "ab" * 32
NAME = storage_name(SECRET, "video", KEY)
ENVELOPE = Envelope(SECRET)
texts = st.text(max_size=100)
integers = st.integers(-(2**63) + 1, 2**63 - 1)
scalars = st.none() | st.booleans() | integers | st.floats(allow_nan=False, allow_infinity=False) | texts
metas = st.dictionaries(
    texts.map(lambda text: f"x{text}"),
    scalars | st.lists(scalars) | st.dictionaries(texts, scalars, max_size=3),
    max_size=5,
)
entries = st.builds(Entry.of, st.just(KEY), st.binary(max_size=200), metas)


def pack(entry: Entry) -> bytes:
    return ENVELOPE.pack(NAME, entry)


def unpack(frame: bytes) -> Entry:
    return ENVELOPE.unpack(NAME, KEY, frame)


def signed(header: bytes, payload: bytes = b"", *, secret: bytes = SECRET, version: int = 2) -> bytes:
    """A frame of any header at all, authenticated as ours are."""
    prefix = struct.pack(">4sBI", b"ENCR", version, len(header))
    key = hmac.digest(secret, b"encore frame 2", "sha256")
    return prefix + hmac.digest(key, prefix + header, "sha256") + header + payload


def header(**changed: object) -> bytes:
    fields = {"digest": hashlib.sha256(b"").hexdigest(), "length": 0, "meta": {}, "name": NAME} | changed
    return json.dumps(fields).encode()


@given(entries)
def test_round_trip(entry: Entry) -> None:
    """Any bytes with any flat JSON metadata come back equal, and a glance tells all but the bytes."""
    frame = pack(entry)
    assert unpack(frame) == entry
    seen = ENVELOPE.glance(NAME, frame[: len(frame) - entry.size])
    assert (seen.digest, seen.meta) == (entry.digest, entry.meta)


@given(entries, st.data())
def test_any_flipped_bit_is_found(entry: Entry, data: st.DataObject) -> None:
    """One flipped bit anywhere, header included, makes the frame corrupt."""
    frame = bytearray(pack(entry))
    position = data.draw(st.integers(0, len(frame) - 1))
    frame[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CorruptEntry):
        unpack(bytes(frame))


@given(entries, st.data())
def test_any_truncation_or_extension_is_found(entry: Entry, data: st.DataObject) -> None:
    """A frame cut anywhere, or with bytes behind its end, is corrupt."""
    frame = pack(entry)
    with pytest.raises(CorruptEntry):
        unpack(frame[: data.draw(st.integers(0, len(frame) - 1))])
    with pytest.raises(CorruptEntry):
        unpack(frame + data.draw(st.binary(min_size=1, max_size=20)))


@given(st.binary(max_size=200))
def test_noise_is_found(noise: bytes) -> None:
    """Bytes that never were a frame are corrupt, whatever they are."""
    with pytest.raises(CorruptEntry):
        unpack(noise)


def test_a_planted_value_is_found() -> None:
    """A whole frame that somebody without the secret made, of this version or the former, is no value of ours."""
    entry = Entry.of(KEY, b"planted", {"content_type": "video/mp4"})
    for secret in (b"", b"another", NAME.encode()):
        with pytest.raises(CorruptEntry, match="secret"):
            unpack(Envelope(secret).pack(NAME, entry))
    fields = {"digest": entry.digest, "key": KEY, "length": 7, "meta": dict(entry.meta)}
    body = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    prefix = struct.pack(">4sBI", b"ENCR", 1, len(body))
    with pytest.raises(FormerFrame):
        unpack(prefix + hashlib.sha256(prefix + body).digest() + body + b"planted")
    with pytest.raises(CorruptEntry):
        unpack(struct.pack(">4sBI", b"ENCR", 2, len(body)) + hashlib.sha256(prefix + body).digest() + body + b"planted")


def test_a_swapped_object_is_found() -> None:
    """A whole frame stored under another key, or for another kind of the same key, does not pass for this one."""
    for name in (storage_name(SECRET, "video", "cd" * 32), storage_name(SECRET, "latents", KEY)):
        with pytest.raises(CorruptEntry, match="another key"):
            unpack(ENVELOPE.pack(name, Entry.of(KEY, b"data")))


DEEP = b"[" * 30_000 + b"]" * 30_000
MALFORMED = {
    "a list": b"[]",
    "empty": b"{}",
    "no text": b"\xff",
    "deep": DEEP,
    "deep metadata": header().replace(b'"meta": {}', b'"meta": ' + DEEP),
    "nested metadata": header(meta={"a": {"b": {"c": 1}}}),
    "metadata is a number": header(meta=5),
    "a name twice": header().replace(b'{"digest"', b'{"length": 0, "digest"'),
    "NaN": header(meta={"x": float("nan")}),
    "beyond floats": header().replace(b'"meta": {}', b'"meta": {"x": 1e999}'),
    "a giant number": header().replace(b'"meta": {}', b'"meta": {"x": ' + b"9" * 4000 + b"}"),
    "more digits than are read": header().replace(b'"meta": {}', b'"meta": {"x": ' + b"9" * 20_000 + b"}"),
    "length is a bool": header(length=False),
    "length is less": header(length=-1),
    "length is a text": header(length="0"),
    "a digest that is none": header(digest="00"),
    "a digest of another type": header(digest=None),
    "another field": header(extra=1),
    "labels of another type": header(meta={"labels": [1]}),
    "begun at a text": header(meta={"begun_at": "1"}),
    "seconds before nothing": header(meta={"render_seconds": -1}),
    "a type that is none": header(meta={"content_type": 1}),
    "many fields": header(meta={f"f{number}": 0 for number in range(100)}),
    "a long text": header(meta={"x": "x" * 10_000}),
    "too long": header(meta={f"x{number}": "x" * 8_000 for number in range(20)}),
}


def told_by_all(name: str, frame: bytes) -> None:
    """Call everything that reads bytes of a store; none of it may raise anything but CorruptEntry."""
    cost = cost_seconds(frame)
    assert cost == UNKNOWN_SECONDS or 0 <= cost < 4e9
    claims(frame), frame_metadata(frame), is_former(frame), was_made_for(name, frame, SECRET)
    assert fault(name, frame, SECRET) is None or isinstance(fault(name, frame, None), str | None)
    for read in (lambda: whole(name, frame), lambda: former_key(frame), lambda: ENVELOPE.glance(name, frame)):
        with suppress(CorruptEntry):
            read()


@pytest.mark.parametrize("told", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_header_is_corrupt_whoever_signed_it(told: bytes) -> None:
    """Wrong types, depth, doubles, lengths: a miss, no exception of another kind, from whatever reads stored bytes."""
    with pytest.raises(CorruptEntry):
        unpack(signed(told))
    for frame in (signed(told), signed(told, secret=b"another"), signed(told, version=1)):
        told_by_all(NAME, frame)
    prefix = struct.pack(">4sBI", b"ENCR", 1, len(told))
    told_by_all(NAME, prefix + hashlib.sha256(prefix + told).digest() + told)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
names = st.sampled_from(["digest", "length", "meta", "name", "key"])
metadata = st.sampled_from(["labels", "begun_at", "cost_seconds", "render_seconds", "content_type", "spec", "x"])


@given(
    st.dictionaries(names, json_values | st.dictionaries(metadata, json_values)), st.binary(max_size=9), st.booleans()
)
def test_any_json_as_a_header(changed: dict[str, object], payload: bytes, ours: bool) -> None:
    """Whatever JSON stands in a header, signed by us or not, is an entry or corrupt."""
    frame = signed(header(**changed), payload, secret=SECRET if ours else b"another")
    told_by_all(NAME, frame)
    try:
        entry = unpack(frame)
    except CorruptEntry:
        return
    assert ours
    assert (entry.key, entry.data) == (KEY, payload)


@given(entries, st.integers(0, 300), st.binary(max_size=12), st.sampled_from([1, 2, 3]))
def test_any_bytes_written_over_a_frame(entry: Entry, position: int, written: bytes, version: int) -> None:
    """Overwritten bytes, lengths and versions included, never raise anything but CorruptEntry."""
    frame = bytearray(pack(entry))
    frame[4] = version
    frame[position : position + len(written)] = written
    told_by_all(NAME, bytes(frame))


def test_a_header_is_bounded_before_it_is_read() -> None:
    """A length of four gigabytes is corrupt at once: nobody asks for more bytes of it."""
    frame = struct.pack(">4sBI", b"ENCR", 2, 2**32 - 1) + bytes(100)
    with pytest.raises(CorruptEntry, match="4294967295"):
        ENVELOPE.glance(NAME, frame)
    with pytest.raises(CorruptEntry, match="4294967295"):
        unpack(frame)
    longest = pack(Entry.of(KEY, bytes(9), {"labels": ["ab" * 32] * 512, "x": "x" * 8_000}))
    assert ENVELOPE.glance(NAME, longest[:HEAD_BYTES]).digest == hashlib.sha256(bytes(9)).hexdigest()


@pytest.mark.parametrize(
    "meta",
    [{"seconds": float("nan")}, {"a": {"b": [1]}}, {"a": b""}, {"labels": "abc"}, {"a": "x" * 9_000}, {"n": 2**70}],
)
def test_metadata_that_could_not_be_read_is_not_written(meta: dict[str, object]) -> None:
    """What the strict reader refuses is refused when packing."""
    with pytest.raises(ValueError, match="JSON"):
        pack(Entry.of(KEY, b"", meta))


def test_a_header_tells_no_key() -> None:
    """Keys are hashes of prompts, which can be guessed: a frame says its storage name alone."""
    assert KEY.encode() not in pack(Entry.of(KEY, b"mp4", {"steps": 4}))


def test_the_format_of_the_frame_is_pinned() -> None:
    """Frames written by an earlier release must stay readable: the bytes of one frame are fixed here."""
    told = json.dumps(
        {"digest": hashlib.sha256(b"mp4").hexdigest(), "length": 3, "meta": {"steps": 4}, "name": NAME},
        separators=(",", ":"),
    ).encode()
    assert pack(Entry.of(KEY, b"mp4", {"steps": 4})) == signed(told, b"mp4")
