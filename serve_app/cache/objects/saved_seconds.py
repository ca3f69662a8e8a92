"""What a stored frame saves: the seconds of work that made it, read out of the frame's own header.

Videos tell the seconds of their render and of their encoding, latents and embeddings those of the work that made them
(`cost_seconds`). Eviction alone asks, so nothing is verified or raised: what tells nothing counts as one second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from serve_app.cache.envelope import HEAD_BYTES, claims

UNKNOWN_SECONDS = 1.0
MOST_SECONDS = 1e9
"""What says that it saves more than this is not believed more."""
HEADER_BYTES = HEAD_BYTES

_PARTS = ("cost_seconds", "render_seconds", "encode_seconds")


def cost_seconds(frame: bytes) -> float:
    """Return the seconds that `frame`, or the first HEADER_BYTES of it, says its value took to make."""
    meta = claims(frame).get("meta")
    return meta_cost_seconds(meta) if isinstance(meta, Mapping) else UNKNOWN_SECONDS


def meta_cost_seconds(meta: Mapping[str, Any]) -> float:
    """Return the seconds that an entry's metadata tells."""
    told = [meta[part] for part in _PARTS if part in meta]
    if not told or not all(map(_is_seconds, told)):
        return UNKNOWN_SECONDS
    return float(sum(min(each, MOST_SECONDS) for each in told))


def _is_seconds(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value >= 0 and (isinstance(value, int) or math.isfinite(value))
