"""Fingerprints: what a part of a model computes, as 64 hex digits that keys are made with."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def fingerprint(**parts: Any) -> str:
    """Return 64 hex digits: SHA-256 over the canonical JSON (sorted, compact, ASCII) of `parts`."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()
