"""The image that a video is to start from, in the forms the wire has for it: a file, or a URL that is the file itself.

OpenAI's API takes a multipart file, or an object with `image_url` or `file_id`. A `data:` URL (RFC 2397) is read; any
other is refused, because a server that fetches what a client names reaches what the client cannot (SSRF), and there are
no uploaded files that an id could name. Whether the bytes are a picture is not asked here.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import unquote_to_bytes

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

_DATA_URL = re.compile(r"data:[^,]{0,200}; *base64,", re.IGNORECASE | re.ASCII)
_DATA_URL_PATTERN = r"^[\t\n\f\r ]*[Dd][Aa][Tt][Aa]:[^,]{0,200}; *[Bb][Aa][Ss][Ee]64,"
_BLANKS = "\t\n\f\r "


def image_bytes(value: Any) -> bytes:
    """Return the file that `value` is, holds or spells; PydanticCustomError for all else."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):
        return _decoded(value)
    if not isinstance(value, Mapping):
        raise PydanticCustomError("image", "Input should be a file, or an object with 'image_url'")
    if "file_id" in value:
        raise PydanticCustomError("file_id", "'file_id' is not supported; send the file itself")
    if set(value) != {"image_url"} or not isinstance(value["image_url"], str):
        raise PydanticCustomError("image", "Input should be an object with 'image_url' alone, a data: URL")
    return _decoded(value["image_url"])


def _decoded(url: str) -> bytes:
    url = url.strip(_BLANKS)
    start = _DATA_URL.match(url)
    if start is None:
        raise PydanticCustomError(
            "image_url", "Remote images are not fetched; send the file, or a URL of the form data:image/png;base64,..."
        )
    try:
        return _forgiving_base64(url[start.end() :])
    except (binascii.Error, ValueError):
        raise PydanticCustomError("image_url", "The data: URL is not valid base64") from None


def _forgiving_base64(text: str) -> bytes:
    """Decode as browsers do (WHATWG, Infra, "forgiving-base64 decode"): blanks go, padding is optional.

    Percent-encoding is undone first, as for any data: URL. Raises ValueError.
    """
    data = text.encode("ascii")
    if b"%" in data:
        data = unquote_to_bytes(data)
    data = data.translate(None, _BLANKS.encode())
    if len(data) % 4 == 0:
        data = data[:-2] + data[-2:].rstrip(b"=") if not data.endswith(b"===") else data
    return binascii.a2b_base64(data + b"=" * (-len(data) % 4), strict_mode=True)


_OBJECT = {
    "type": "object",
    "properties": {"image_url": {"type": "string", "description": "a data: URL, base64", "pattern": _DATA_URL_PATTERN}},
    "required": ["image_url"],
    "additionalProperties": False,
}
JSON_IMAGE = {
    "anyOf": [{"type": "string", "pattern": _DATA_URL_PATTERN}, _OBJECT, {"type": "null"}],
    "description": "an image (PNG, JPEG, WebP) that the video starts from: a data: URL; scaled and cut in the middle "
    "to the video's size",
}
"""The schema of an image in JSON, which has no files."""
InputReference = Annotated[
    bytes,
    BeforeValidator(image_bytes),
    PlainSerializer(lambda data: hashlib.sha256(data).hexdigest(), return_type=str, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "format": "binary"},
                _OBJECT,
            ]
        }
    ),
]
"""The bytes of an image's file; in JSON, where a request is only told apart from others, their SHA-256."""
