"""Frames as a deployment's tiers store them, for tests that put them there themselves."""

from __future__ import annotations

from serve_app.cache.envelope import Envelope
from serve_app.cache.storage_name import Kind, storage_name
from serve_app.core import Entry

SECRET = b"a secret of tests"


def framed(entry: Entry, kind: Kind = "video", secret: bytes = SECRET) -> bytes:
    """Return the frame of `entry` under its own name."""
    return Envelope(secret).pack(storage_name(secret, kind, entry.key), entry)


def opened(frame: bytes, key: str, kind: Kind = "video", secret: bytes = SECRET) -> Entry:
    """Return the entry in a frame; raises CorruptEntry."""
    return Envelope(secret).unpack(storage_name(secret, kind, key), key, frame)
