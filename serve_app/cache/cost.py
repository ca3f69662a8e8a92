"""What a stored frame saves: the seconds of work that made it, read out of the frame's own header.

Videos tell the seconds of their render and of their encoding, latents and embeddings those of the work that made them
(`cost_seconds`). Eviction alone asks, so nothing is raised: what tells nothing counts as one second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from serve_app.cache.entry import read_header
from serve_app.errors import CorruptEntry

UNKNOWN_SECONDS = 1.0
HEADER_BYTES = 65_536
"""So many of a frame's first bytes hold its header: a prompt of 2,000 characters takes at most 24,000 in JSON."""

_PARTS = ("cost_seconds", "render_seconds", "encode_seconds")


def cost_seconds(frame: bytes) -> float:
    """Return the seconds that `frame`, or the first HEADER_BYTES of it, says its value took to make."""
    try:
        meta = read_header(frame).get("meta")
    except CorruptEntry:
        return UNKNOWN_SECONDS
    return meta_cost_seconds(meta) if isinstance(meta, Mapping) else UNKNOWN_SECONDS


def meta_cost_seconds(meta: Mapping[str, Any]) -> float:
    """Return the seconds that an entry's metadata tells."""
    told = [meta[part] for part in _PARTS if part in meta]
    if not told or not all(isinstance(each, int | float) and math.isfinite(each) and each >= 0 for each in told):
        return UNKNOWN_SECONDS
    return float(sum(told))
