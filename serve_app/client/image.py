"""The image that a video is to start from, as the clients send it: inside the JSON, so that a request has one form."""

from __future__ import annotations

import base64
import os
from pathlib import Path

from serve_app.errors import InvalidRequest

Image = bytes | str | os.PathLike[str]
"""A file's bytes, its path, or a data: URL."""


def data_url(image: Image) -> str:
    """Return an image as a data: URL (RFC 2397); the server looks at its bytes for what type it is.

    Raises InvalidRequest for a file that cannot be read.
    """
    if isinstance(image, str) and image.startswith("data:"):
        return image
    data = image if isinstance(image, bytes) else _read(Path(image))
    return "data:application/octet-stream;base64," + base64.b64encode(data).decode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InvalidRequest(f"The image {path} cannot be read: {why}.", param="input_reference") from error
