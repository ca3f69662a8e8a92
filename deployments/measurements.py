"""What a Diffusion replica measured of its device, in a file between starts.

Measurements hold for one model on one device with one number of threads and one torch; under any other name they are
not found, and the replica measures. A file that cannot be read or written costs a measurement and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from pathlib import Path
from typing import Any

import torch

from serve_app.engine.pass_times import PassTimes
from serve_app.errors import InvalidRequest

logger = logging.getLogger("ray.serve")


class Measurements:
    """One file of measurements, by what they hold for; `path` None keeps nothing."""

    def __init__(self, path: str | None, *, model_fingerprint: str, device: str, torch_threads: int | None) -> None:
        self._path = None if path is None else Path(path).expanduser()
        facts = [model_fingerprint, _name(device), torch.__version__, torch_threads]
        self._holds_for = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def load(self, pace: PassTimes) -> None:
        """Tell `pace` what is known."""
        known = self._read().get(self._holds_for)
        if known is not None:
            try:
                pace.load(known)
            except InvalidRequest as error:
                logger.warning("%s: %s", self._path, error)

    def save(self, pace: PassTimes) -> None:
        """Write what `pace` measured beside what the file holds for other devices."""
        if self._path is None:
            return
        whole = {**self._read(), self._holds_for: pace.to_json()}
        partial = self._path.with_suffix(f".{os.getpid()}.partial")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(whole), "utf-8")
            partial.replace(self._path)
        except OSError as error:
            logger.warning("measurements are not kept: %s", error)

    def _read(self) -> dict[str, Any]:
        try:
            whole = {} if self._path is None else json.loads(self._path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            logger.warning("measurements are not read: %s", error)
            return {}
        return whole if isinstance(whole, dict) else {}


def _name(device: str) -> str:
    return platform.processor() or platform.machine() if device == "cpu" else str(torch.cuda.get_device_name(device))
