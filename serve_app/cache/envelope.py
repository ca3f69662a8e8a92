"""The frame a cached value travels and rests in: what went in comes out, or CorruptEntry is raised.

Every tier outside this process stores these frames. Who can write to such a tier is not trusted: the header is
authenticated under the deployment's secret and holds the value's digest, so that a flipped bit, a cut transfer, an
object swapped for another and a planted one are all found when the value enters memory, and never reach a player.

    magic "ENCR" | version u8 = 2 | header length u32 | HMAC-SHA256 of all before and of the header | header | payload

Numbers are big-endian; the header is JSON: {"digest", "length", "meta", "name"}. It says the storage name and no key: a
key is a hash of the prompt, which can be guessed. Version 1 (SHA-256 where the HMAC is, "key" for "name") is a
FormerFrame: a miss that may be overwritten.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

from serve_app.core import Entry
from serve_app.errors import CorruptEntry

_PREFIX = struct.Struct(">4sBI")
_MAGIC, _VERSION, _FORMER = b"ENCR", 2, 1
_DIGEST_BYTES = hashlib.sha256().digest_size
_HEADER_AT = _PREFIX.size + _DIGEST_BYTES
_LABEL = b"encore frame 2"
HEAD_BYTES = 65_536
"""So many of a frame's first bytes hold its header, whatever it says."""
_MAX_HEADER = HEAD_BYTES - _HEADER_AT
_MAX_FIELDS, _MAX_ITEMS, _MAX_NAME, _MAX_TEXT, _MAX_INT = 64, 512, 128, 8_192, 2**63
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FIELDS = frozenset({"digest", "length", "meta", "name"})


class FormerFrame(CorruptEntry):
    """A frame of the former version: not damaged, and no value either."""


class Incomplete(CorruptEntry):
    """So many bytes of the frame are needed to read its header."""

    def __init__(self, needed: int) -> None:
        super().__init__(f"The header needs {needed} bytes.")
        self.needed = needed


class Envelope:
    """Frames under one deployment's `secret`, of which it keeps a key of its own."""

    __slots__ = ("_key",)

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, _LABEL, "sha256")

    def pack(self, name: str, entry: Entry) -> bytes:
        """Frame `entry` for the storage name `name`, which stands for its kind and key.

        Its meta must be JSON, a level deep and within bounds: TypeError or ValueError say what is not (NaN is not).
        """
        if (wrong := _fault_of(dict(entry.meta))) is not None:
            raise ValueError(f"The metadata is not JSON that a header may hold: {wrong}.")
        fields = {"digest": entry.digest, "length": entry.size, "meta": dict(entry.meta), "name": name}
        header = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        if len(header) > _MAX_HEADER:
            raise ValueError(f"The metadata takes {len(header)} bytes of JSON, {_MAX_HEADER} may be.")
        prefix = _PREFIX.pack(_MAGIC, _VERSION, len(header))
        return b"".join((prefix, hmac.digest(self._key, prefix + header, "sha256"), header, entry.data))

    def unpack(self, name: str, key: str, frame: bytes) -> Entry:
        """Return the entry framed in `frame`; raise CorruptEntry unless it is whole, ours, and was made for `name`.

        key: what `name` was made of; a frame does not say it.
        """
        header, payload = self._verified(name, frame)
        if header["length"] != len(payload):
            raise CorruptEntry(f"The value has {len(payload)} bytes, its header says {header['length']}.")
        if hashlib.sha256(payload).hexdigest() != header["digest"]:
            raise CorruptEntry("The value does not have the digest it was stored with.")
        return Entry(key, bytes(payload), header["digest"], header["meta"])

    def glance(self, name: str, head: bytes) -> Entry:
        """Return what the first bytes of a frame tell: an entry without its value and its key.

        Raises CorruptEntry, and Incomplete for too few bytes. For who must look at many: the header verifies, the
        value is not looked at.
        """
        _require_header(head)
        header, _ = self._verified(name, head)
        return Entry("", b"", header["digest"], header["meta"])

    def _verified(self, name: str, frame: bytes) -> tuple[dict[str, Any], memoryview]:
        prefix, digest, header, payload = _parts(frame)
        if not hmac.compare_digest(hmac.digest(self._key, prefix + header, "sha256"), digest):
            raise CorruptEntry("The header was not written under this deployment's secret, or was changed since.")
        fields = _parse(header)
        if fields["name"] != name:
            raise CorruptEntry("The value was stored under another key.")
        return fields, payload


def whole(name: str, frame: bytes) -> None:
    """Raise CorruptEntry unless `frame` is in itself as it should be: all that can be told without the secret."""
    _, _, header, payload = _parts(frame)
    fields = _parse(header)
    if fields["name"] != name:
        raise CorruptEntry("The value lies under a name that is not its own.")
    if fields["length"] != len(payload) or hashlib.sha256(payload).hexdigest() != fields["digest"]:
        raise CorruptEntry("The value does not have the length or the digest it was stored with.")


def claims(head: bytes) -> Mapping[str, Any]:
    """Return what the first bytes of a frame of any version say, not verified; empty when nothing can be read.

    For what only weighs values: a writer there can also delete.
    """
    try:
        _require_header(head)
        _, version, length = _PREFIX.unpack_from(head)
        if not head.startswith(_MAGIC) or version not in (_VERSION, _FORMER):
            return {}
        return _loaded(head[_HEADER_AT : _HEADER_AT + length])
    except CorruptEntry:
        return {}


def is_former(head: bytes) -> bool:
    """Tell whether these are the first bytes of a frame of the former version."""
    return len(head) >= _PREFIX.size and _PREFIX.unpack_from(head)[:2] == (_MAGIC, _FORMER)


def former_key(frame: bytes, *, headers_only: bool = False) -> str:
    """Return the key that a frame of the former version says; raise CorruptEntry unless it is whole."""
    if not is_former(frame):
        raise CorruptEntry("This is not a frame of the former version.")
    _require_header(frame)
    end = _HEADER_AT + _PREFIX.unpack_from(frame)[2]
    prefix, digest, header = frame[: _PREFIX.size], frame[_PREFIX.size : _HEADER_AT], frame[_HEADER_AT:end]
    if hashlib.sha256(prefix + header).digest() != digest:
        raise CorruptEntry("The header does not have the digest it was stored with.")
    fields, payload = _loaded(header), memoryview(frame)[end:]
    if not headers_only and hashlib.sha256(payload).hexdigest() != fields.get("digest"):
        raise CorruptEntry("The value does not have the digest it was stored with.")
    key = fields.get("key")
    if not isinstance(key, str):
        raise CorruptEntry("The header has no key.")
    return key


def _require_header(head: bytes) -> None:
    """Raise Incomplete for too few bytes to hold the header, CorruptEntry when it is said to be longer than any is."""
    if len(head) < _HEADER_AT:
        raise Incomplete(_HEADER_AT)
    length = _PREFIX.unpack_from(head)[2]
    if head.startswith(_MAGIC) and length > _MAX_HEADER:
        raise CorruptEntry(f"The header is said to have {length} bytes.")
    if len(head) < _HEADER_AT + length and head.startswith(_MAGIC):
        raise Incomplete(_HEADER_AT + length)


def _parts(frame: bytes) -> tuple[bytes, bytes, bytes, memoryview]:
    if len(frame) < _HEADER_AT:
        raise CorruptEntry(f"A frame of {len(frame)} bytes is too short.")
    magic, version, length = _PREFIX.unpack_from(frame)
    if (magic, version) == (_MAGIC, _FORMER):
        raise FormerFrame("This is a frame of a former release.")
    if (magic, version) != (_MAGIC, _VERSION):
        raise CorruptEntry("This is not a frame of a known version.")
    if length > _MAX_HEADER:
        raise CorruptEntry(f"The header is said to have {length} bytes.")
    end = _HEADER_AT + length
    return frame[: _PREFIX.size], frame[_PREFIX.size : _HEADER_AT], frame[_HEADER_AT:end], memoryview(frame)[end:]


def _parse(header: bytes) -> dict[str, Any]:
    """Return the header's fields, each of its type and within bounds; raises CorruptEntry."""
    fields = _loaded(header)
    if fields.keys() != _FIELDS:
        raise CorruptEntry("The header does not have the fields of a header.")
    texts = all(isinstance(fields[name], str) and _SHA256.fullmatch(fields[name]) for name in ("digest", "name"))
    if not texts or type(fields["length"]) is not int or fields["length"] < 0:
        raise CorruptEntry("A field of the header is not of its type.")
    if (wrong := _fault_of(fields["meta"])) is not None:
        raise CorruptEntry(f"The header's metadata is none: {wrong}.")
    return fields


def _loaded(header: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(header, object_pairs_hook=_unique, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise CorruptEntry("The header is not JSON.") from error
    if not isinstance(fields, dict):
        raise CorruptEntry("The header is not an object.")
    return fields


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name stands twice")
    return fields


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _are_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)


_KNOWN: dict[str, Callable[[object], bool]] = {
    "begun_at": lambda value: type(value) is int,
    "created_at": _is_seconds,
    "render_seconds": _is_seconds,
    "encode_seconds": _is_seconds,
    "cost_seconds": _is_seconds,
    "labels": _are_texts,
    "content_type": lambda value: isinstance(value, str),
    "model_fingerprint": lambda value: isinstance(value, str),
}
"""Of what type metadata are that this code reads; others are any scalar, or a list or an object of scalars."""


def _fault_of(meta: object) -> str | None:
    """Return what is wrong with metadata, None when nothing is."""
    if not isinstance(meta, dict) or len(meta) > _MAX_FIELDS:
        return "it is no object of a few fields"
    for name, value in meta.items():
        if not isinstance(name, str) or len(name) > _MAX_NAME:
            return "a name is too long"
        if name in _KNOWN and not _KNOWN[name](value):
            return f"'{name}' is of another type"
        if not (_is_scalar(value) or _is_flat(value)):
            return f"'{name}' is too deep, too long or no JSON"
    return None


def _is_flat(value: object) -> bool:
    if isinstance(value, dict):
        names = all(isinstance(name, str) and len(name) <= _MAX_NAME for name in value)
        return names and len(value) <= _MAX_ITEMS and all(map(_is_scalar, value.values()))
    return isinstance(value, list | tuple) and len(value) <= _MAX_ITEMS and all(map(_is_scalar, value))


def _is_scalar(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= _MAX_TEXT
    if isinstance(value, int):  # bool too
        return -_MAX_INT < value < _MAX_INT
    return value is None or (isinstance(value, float) and math.isfinite(value))
