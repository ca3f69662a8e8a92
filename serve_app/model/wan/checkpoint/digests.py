"""SHA-256 digests of large files, computed once: 34 GB of weights take half a minute, and every start asks.

The Hub's cache names a large file's blob by its SHA-256, so there it is read off the name. Other digests are kept in
one JSON file of the user's cache folder under the file's path, size and time of change; what cannot be read or written
there costs time and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")


def default_file() -> Path:
    """Return where digests are remembered (XDG Base Directory: a relative XDG_CACHE_HOME is ignored)."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path("~/.cache").expanduser()) / "encore" / "digests.json"


@dataclass(frozen=True, slots=True)
class Digests:
    """Digests with one file as their memory."""

    file: Path

    def of(self, path: Path) -> str:
        """Return the SHA-256 of a file's bytes as 64 hex digits; raises OSError."""
        real = path.resolve(strict=True)
        if real.parent.name == "blobs" and _SHA256.fullmatch(real.name):
            return real.name
        facts = real.stat()
        name = f"{real}:{facts.st_size}:{facts.st_mtime_ns}"
        known = self._read().get(name)
        if known is not None:
            return known
        with real.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        self._remember(name, digest)
        return digest

    def _remember(self, name: str, digest: str) -> None:
        partial = self.file.with_suffix(f".{os.getpid()}.partial")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps({**self._read(), name: digest}), "utf-8")
            partial.replace(self.file)
        except OSError as error:
            logger.warning("digests are not remembered: %s", error)

    def _read(self) -> dict[str, str]:
        try:
            known = json.loads(self.file.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            logger.warning("remembered digests are not read: %s", error)
            return {}
        return known if isinstance(known, dict) else {}
