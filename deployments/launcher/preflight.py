"""What can be known before Ray starts: whether the settings can work at all, on this machine.

`deployments.app.build` checks what holds on every machine (names, shapes of URLs, the model, files of words). Here
comes what only the machine itself knows: its devices and folders. A cluster's head, which builds, has neither.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from serve_app.errors import InvalidRequest
from serve_app.settings import Settings, first_fault, unknown
from serve_app.urls import path_of
from serve_app.wiring.router import check_settings

Say = Callable[[str], None]


def check(given: Mapping[str, Any], say: Say) -> Settings:
    """Return the settings of a server that gets `given` ones; raises EncoreError that names the one that cannot work.

    say: gets a line for each variable that looks like a setting and is none.
    """
    for line in unknown():
        say(f"Warning: {line}")
    try:
        settings = Settings(**given)
    except ValidationError as error:
        name, message = first_fault(error)
        raise InvalidRequest(f"Setting '{name}': {message}." if name else f"{message}.", param=name or None) from None
    except ValueError as error:
        raise InvalidRequest(f"{error}.") from None
    check_settings(settings)
    _check_devices(settings)
    _check_folder(settings)
    return settings


def _check_devices(settings: Settings) -> None:
    wanted = [name for name in ("device", "text_device") if getattr(settings, name) == "cuda"]
    if not wanted:
        return
    import torch  # seconds that a server on CPUs does not wait for

    if not torch.cuda.is_available():
        reason = f"CUDA_VISIBLE_DEVICES is '{hidden}'" if (hidden := os.environ.get("CUDA_VISIBLE_DEVICES")) else ""
        reason = reason or ("this torch is built without CUDA" if torch.version.cuda is None else "see `nvidia-smi`")
        raise InvalidRequest(
            f"Setting '{wanted[0]}' is cuda, but torch finds no GPU here ({reason}); set it to cpu or auto.",
            param=wanted[0],
        )


def _check_folder(settings: Settings) -> None:
    if settings.l3_url is None or not settings.l3_url.startswith("file:"):
        return
    folder = path_of(settings.l3_url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InvalidRequest(f"Setting 'l3_url': {folder} cannot be used: {error.strerror}.", param="l3_url") from None
