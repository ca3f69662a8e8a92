"""What somebody else can do to a store: plant frames, mark it as another deployment's, hold a folder's lock.

Small functions for outage programs; each does to a real store what a person with its credentials could, and no more.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serve_app.cache.envelope import Envelope
from serve_app.cache.store_secret import MARKER, marker_of
from serve_app.core import Entry


def planted_frames(name: str, key: str, payload: bytes = b"planted") -> dict[str, bytes]:
    """Return frames that somebody without the secret can make for a storage name; none of them may ever be served."""
    meta = {"content_type": "video/mp4", "begun_at": 2**62, "labels": [], "render_seconds": 1e300}
    another = Envelope(b"somebody else").pack(name, Entry.of(key, payload, meta | {"render_seconds": 1.0}))
    deep = b"[" * 20_000 + b"]" * 20_000
    return {
        "of another secret": another,
        "of another secret, its digest in place of the HMAC": _with_digest(another),
        "of the former version": former_frame(key, payload, meta),
        "with deep JSON": _hashed(2, deep, payload),
        "of the former version, with deep JSON": _hashed(1, deep, payload),
        "of the former version, its metadata a number": former_frame(key, payload, 5),
        "with a header of four gigabytes": struct.pack(">4sBI", b"ENCR", 2, 2**32 - 1) + bytes(64),
        "noise": bytes(range(256)) * 8,
        "empty": b"",
    }


def former_frame(key: str, payload: bytes, meta: object) -> bytes:
    """Return a frame as the former release wrote them, which anybody can make."""
    fields = {"digest": hashlib.sha256(payload).hexdigest(), "key": key, "length": len(payload), "meta": meta}
    return _hashed(1, json.dumps(fields, sort_keys=True, separators=(",", ":")).encode(), payload)


def foreign_marker() -> bytes:
    """Return the marker of another deployment's store."""
    return marker_of(b"the secret of another deployment")


def mark_as_foreign(folder: Path) -> None:
    """Make a folder L3 another deployment's."""
    (folder / MARKER).write_bytes(foreign_marker())


@contextmanager
def held_lock(folder: Path) -> Iterator[None]:
    """Hold the write lock of a folder L3's index, as a stopped process does."""
    connection = sqlite3.connect(folder / "index.sqlite", isolation_level=None, timeout=60)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()


def _with_digest(frame: bytes) -> bytes:
    length = struct.unpack_from(">4sBI", frame)[2]
    return _hashed(2, frame[41 : 41 + length], frame[41 + length :])


def _hashed(version: int, header: bytes, payload: bytes) -> bytes:
    prefix = struct.pack(">4sBI", b"ENCR", version, len(header))
    return prefix + hashlib.sha256(prefix + header).digest() + header + payload
