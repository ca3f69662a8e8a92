"""The frame a cached value travels and rests in: what went in comes out, or CorruptEntry is raised.

Every tier outside this process stores these frames, so that a flipped bit, a cut transfer or an object swapped for
another is found when the value enters memory and never reaches a player. The header has a digest of its own because
the metadata in it is served too.

    magic "ENCR" | version u8 | header length u32 | SHA-256 of all before and of the header | header | payload

Numbers are big-endian; the header is JSON: {"digest", "key", "length", "meta"}.
"""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

from serve_app.core import Entry
from serve_app.errors import CorruptEntry

_PREFIX = struct.Struct(">4sBI")
_MAGIC, _VERSION = b"ENCR", 1
_DIGEST_BYTES = hashlib.sha256().digest_size
_HEADER_AT = _PREFIX.size + _DIGEST_BYTES


def pack(entry: Entry) -> bytes:
    """Frame `entry`; its meta must be JSON: TypeError or ValueError say what is not (NaN is not)."""
    fields = {"digest": entry.digest, "key": entry.key, "length": entry.size, "meta": dict(entry.meta)}
    header = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    prefix = _PREFIX.pack(_MAGIC, _VERSION, len(header))
    return b"".join((prefix, hashlib.sha256(prefix + header).digest(), header, entry.data))


def unpack(key: str, frame: bytes) -> Entry:
    """Return the entry framed in `frame`; raise CorruptEntry unless it is whole and was stored under `key`."""
    header, payload = _split(frame)
    try:
        entry = Entry(header["key"], bytes(payload), header["digest"], header["meta"])
        length = header["length"]
    except (KeyError, TypeError) as error:
        raise CorruptEntry(f"The header lacks {error}.") from error
    if entry.key != key:
        raise CorruptEntry("The value was stored under another key.")
    if length != entry.size:
        raise CorruptEntry(f"The value has {entry.size} bytes, its header says {length}.")
    if hashlib.sha256(entry.data).hexdigest() != entry.digest:
        raise CorruptEntry("The value does not have the digest it was stored with.")
    return entry


def glance(head: bytes) -> Entry:
    """Return what the first bytes of a frame tell, without the value; raise CorruptEntry, and Incomplete for too few.

    For who must look at many: the header verifies, the value is not looked at.
    """
    if len(head) < _HEADER_AT:
        raise Incomplete(_HEADER_AT)
    whole = _HEADER_AT + _PREFIX.unpack_from(head)[2]
    if len(head) < whole and head.startswith(_MAGIC):
        raise Incomplete(whole)
    header, _ = _split(head)
    try:
        return Entry(header["key"], b"", header["digest"], header["meta"])
    except (KeyError, TypeError) as error:
        raise CorruptEntry(f"The header lacks {error}.") from error


class Incomplete(CorruptEntry):
    """So many bytes of the frame are needed to read its header."""

    def __init__(self, needed: int) -> None:
        super().__init__(f"The header needs {needed} bytes.")
        self.needed = needed


def read_header(frame: bytes) -> dict[str, Any]:
    """Return the verified header of a frame of which at least the header is given; raises CorruptEntry."""
    return _split(frame)[0]


def _split(frame: bytes) -> tuple[dict[str, Any], memoryview]:
    if len(frame) < _HEADER_AT:
        raise CorruptEntry(f"A frame of {len(frame)} bytes is too short.")
    magic, version, header_length = _PREFIX.unpack_from(frame)
    if (magic, version) != (_MAGIC, _VERSION):
        raise CorruptEntry("This is not a frame of a known version.")
    prefix, digest = frame[: _PREFIX.size], frame[_PREFIX.size : _HEADER_AT]
    header = frame[_HEADER_AT : _HEADER_AT + header_length]
    if hashlib.sha256(prefix + header).digest() != digest:
        raise CorruptEntry("The header does not have the digest it was stored with.")
    return _parse(header), memoryview(frame)[_HEADER_AT + header_length :]


def _parse(header: bytes) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = json.loads(header)
    except ValueError as error:
        raise CorruptEntry("The header is not JSON.") from error
    return fields
