"""Job ids of hits: an id that carries its own record, so that answering from memory writes nothing first.

A request whose video is already in L1 is complete when it is accepted. Its id holds the time, key(video) and an
HMAC, so any replica can answer for it even if the record (written in the background, for listing) was lost on the way.

Layout, base64url after the prefix: version 1 byte, created_at in microseconds 8, key 32, nonce 5, HMAC-SHA256 14.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import struct
from dataclasses import dataclass

PREFIX = "video_"
_BODY = struct.Struct(">BQ32s5s")
_MAC_BYTES = 14
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a hit's job id says."""

    created_at: float
    key: str


def new_job_id() -> str:
    """Return an id for a job whose record lives in the job store."""
    return PREFIX + secrets.token_hex(16)


def issue(secret: bytes, key: str, created_at: float) -> str:
    """Return the id of a job that was complete at `created_at` (Unix seconds) with the video of `key`."""
    micros = round(created_at * 1e6)
    body = _BODY.pack(_VERSION, micros, bytes.fromhex(key), secrets.token_bytes(5))
    return _spelled(body + _mac(secret, body))


def read(secret: bytes, job_id: str) -> Receipt | None:
    """Return what `job_id` says, None when it is no receipt of this deployment.

    Only the one spelling that `issue` gives is read: a second one would outlive the deletion of the first.
    """
    try:
        raw = base64.urlsafe_b64decode(job_id.removeprefix(PREFIX).encode("ascii"))
    except (binascii.Error, UnicodeEncodeError, ValueError):
        return None
    if len(raw) != _BODY.size + _MAC_BYTES or job_id != _spelled(raw):
        return None
    body, mac = raw[: _BODY.size], raw[_BODY.size :]
    if not hmac.compare_digest(mac, _mac(secret, body)):
        return None
    version, micros, key, _ = _BODY.unpack(body)
    return Receipt(micros / 1e6, key.hex()) if version == _VERSION else None


def _spelled(raw: bytes) -> str:
    return PREFIX + base64.urlsafe_b64encode(raw).decode()


def _mac(secret: bytes, body: bytes) -> bytes:
    return hmac.new(secret, b"receipt" + body, hashlib.sha256).digest()[:_MAC_BYTES]
