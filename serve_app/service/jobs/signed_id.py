"""Job ids: each says when its job was made, and a hit's carries its own record: answering from memory writes nothing.

A request whose video is already in L1 is complete when it is accepted. Its id holds the time, key(video) and an
HMAC, so any replica can answer for it even if the record (written in the background, for listing) was lost on the way.

Layout, base64url after the prefix: version 1 byte, created_at in microseconds 8, key 32, nonce 5, HMAC-SHA256 14.
Another job's id is hexadecimal: created_at in microseconds 14 digits, 20 random ones. So ids sort by creation, and a
list can go on after a job that is gone (`created_at`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import struct
from dataclasses import dataclass

PREFIX = "video_"
_BODY = struct.Struct(">BQ32s5s")
_MAC_BYTES = 14
_VERSION = 1
_PLAIN = re.compile(PREFIX + r"([0-9a-f]{14})[0-9a-f]{20}")


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a hit's job id says."""

    created_at: float
    key: str


def new_job_id(created_at: float) -> str:
    """Return an id for a job whose record lives in the job store."""
    return f"{PREFIX}{_micros(created_at):014x}{secrets.token_hex(10)}"


def created_at(job_id: str) -> float | None:
    """Return when the job of this id was made, as the id says without proof; None for one that does not say."""
    plain = _PLAIN.fullmatch(job_id)
    if plain is not None:
        return int(plain[1], 16) / 1e6
    raw = _raw(job_id)
    return None if raw is None or raw[0] != _VERSION else float(_BODY.unpack(raw[: _BODY.size])[1]) / 1e6


def is_receipt(job_id: str) -> bool:
    """Tell whether an id has the form of a hit's."""
    return _raw(job_id) is not None


def issue(secret: bytes, key: str, created_at: float) -> str:
    """Return the id of a job that was complete at `created_at` (Unix seconds) with the video of `key`."""
    body = _BODY.pack(_VERSION, _micros(created_at), bytes.fromhex(key), secrets.token_bytes(5))
    return _spelled(body + _mac(secret, body))


def read(secret: bytes, job_id: str) -> Receipt | None:
    """Return what `job_id` says, None when it is no receipt of this deployment.

    Only the one spelling that `issue` gives is read: a second one would outlive the deletion of the first.
    """
    raw = _raw(job_id)
    if raw is None:
        return None
    body, mac = raw[: _BODY.size], raw[_BODY.size :]
    if not hmac.compare_digest(mac, _mac(secret, body)):
        return None
    version, micros, key, _ = _BODY.unpack(body)
    return Receipt(micros / 1e6, key.hex()) if version == _VERSION else None


def _raw(job_id: str) -> bytes | None:
    try:
        raw = base64.urlsafe_b64decode(job_id.removeprefix(PREFIX).encode("ascii"))
    except (binascii.Error, UnicodeEncodeError, ValueError):
        return None
    return raw if len(raw) == _BODY.size + _MAC_BYTES and job_id == _spelled(raw) else None


def _micros(seconds: float) -> int:
    return round(seconds * 1e6)


def _spelled(raw: bytes) -> str:
    return PREFIX + base64.urlsafe_b64encode(raw).decode()


def _mac(secret: bytes, body: bytes) -> bytes:
    return hmac.new(secret, b"receipt" + body, hashlib.sha256).digest()[:_MAC_BYTES]
