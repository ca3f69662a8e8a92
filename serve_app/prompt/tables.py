"""Where the tables of other packages lie, found without importing the packages, and what identifies their content.

Rules name the digest of every table behind them, so that a new release of a package gives new keys instead of old
videos for prompts that it now reads differently.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path


def folder_of(package: str) -> Path:
    """Return the folder of an installed package; raises ModuleNotFoundError."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return Path(spec.origin).parent


def digest_of(*files: Path) -> str:
    """Return SHA-256 over the files' contents, in order, as 64 hex digits."""
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()
