"""What a key is called outside this process: an HMAC, so that storage does not tell which prompts were asked for.

Keys are hashes of prompts, and prompts can be guessed; only who has the deployment's secret can go from a guess to
a stored object. It also means that no string of a client ever becomes a path or a Redis key: stores take nothing but
these names, and `checked` holds them to it. In Redis a name stands behind the tag of its shard, so that in a cluster
everything about one key (value, flight, Bloom bits) is in one slot, where one script can touch it all.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Literal, get_args

Kind = Literal["video", "embedding", "latents", "rules"]
"""The stage whose output is stored; `rules` are the invalidations in force."""

SHARDS = 64
"""Fixed for ever: another number would rename every value in Redis."""

_NAME = re.compile(r"[0-9a-f]{64}")


def storage_name(secret: bytes, kind: Kind, key: str) -> str:
    """Return the 64 hex digits that name `key` of `kind` in every shared tier (HMAC-SHA256 under `secret`)."""
    if kind not in get_args(Kind):
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(get_args(Kind))}")
    return hmac.new(secret, f"{kind}\0{key}".encode(), hashlib.sha256).hexdigest()


def masked(secret: bytes, name: str, key: str) -> str:
    """Return `key` in hex under a pad that `secret` makes of `name`: metadata of `name` may hold that.

    One name must mask one key only.
    """
    return _padded(secret, name, key.encode()).hex()


def unmasked(secret: bytes, name: str, text: str) -> str:
    """Return the key that `masked` gave as `text`; raises ValueError for what it did not."""
    return _padded(secret, name, bytes.fromhex(text)).decode()


def _padded(secret: bytes, name: str, data: bytes) -> bytes:
    blocks = range(-(-len(data) // hashlib.sha256().digest_size))
    pad = b"".join(hmac.digest(secret, f"mask\0{block}\0{name}".encode(), "sha256") for block in blocks)
    return bytes(a ^ b for a, b in zip(data, pad, strict=False))


def is_name(text: str) -> bool:
    """Tell whether `text` is of the form of a storage name."""
    return _NAME.fullmatch(text) is not None


def checked(name: str) -> str:
    """Return `name` if it is a storage name; anything else is a bug in the caller and raises ValueError."""
    if not is_name(name):
        raise ValueError("not a storage name: 64 lower-case hex digits are")
    return name


def shard_of(name: str) -> int:
    """Return the shard of a storage name, 0 to SHARDS - 1; names are uniform, so shards are even."""
    return int(checked(name)[:2], 16) % SHARDS


def tag(shard: int) -> str:
    """Return the part of a Redis key that decides its slot (Redis cluster specification, "Hash tags")."""
    return f"{{{shard:02}}}"


def redis_name(name: str, of: str = "value") -> str:
    """Return what a storage name's value, or another thing `of` it, is called in Redis."""
    return f"encore:{of}:{tag(shard_of(name))}{name}"


def record_name(secret: bytes, kind: str, part: str) -> str:
    """Return what a record of `kind` is called in Redis; in a cluster all of one kind are in one slot."""
    text = f"{kind}:{part}".encode("utf-8", "surrogatepass")  # `part` may be as a client gave it
    return f"encore:{{{kind}}}:" + hmac.new(secret, text, hashlib.sha256).hexdigest()
