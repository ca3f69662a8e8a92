"""Files that their owner alone can read, those too that an earlier version made otherwise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any


def open_private(path: Path, mode: str) -> IO[Any]:
    """Open `path` as `open` does, as a file of mode 0600."""
    return open(path, mode, opener=_private, encoding=None if "b" in mode else "utf-8")


def _private(path: str, flags: int) -> int:
    descriptor = os.open(path, flags, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor
