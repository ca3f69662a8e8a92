"""The one table of how a form spells fields: JSON and forms accept the same requests.

The OpenAI SDK sends every request of a video as multipart, flattening what JSON nests: a list is `tags[]` again and
again, an object `metadata[key]` and `input_reference[image_url]`. Other clients repeat `tags`, number them (`tags[0]`),
send `a,b`, or an object as JSON text. All of it becomes the mapping that JSON would have been. An empty text is an
absent field, because forms, and the SDK for None, have no other way to say that; an empty file is a file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Literal

from serve_app.errors import Unprocessable

Shape = Literal["list", "object", "file"]
FORM_SHAPES: dict[str, Shape] = {"tags": "list", "metadata": "object", "input_reference": "file"}
"""The fields that are more than one text; a file may be an object too."""
_NAME = re.compile(r"(\w{1,40})\[([^\[\]]{0,200})\]")

Value = str | bytes


def form_fields(parts: Iterable[tuple[str, Value]]) -> dict[str, Any]:
    """Return what the parts of a form say, as JSON would; raises Unprocessable for what is given twice."""
    fields: dict[str, Any] = {}
    for name, value in parts:
        field, key = _split(name)
        if not isinstance(value, str) and FORM_SHAPES.get(field) != "file":
            raise Unprocessable(f"'{name[:100]}' is a file; only 'input_reference' may be one.", param=name[:100])
        if value == "":
            continue
        if FORM_SHAPES.get(field) == "list":
            fields.setdefault(field, []).append(value)
        elif key is not None:
            _set(fields.setdefault(field, {}), key, value, name)
        else:
            _set(fields, field, _object(value, field) if FORM_SHAPES.get(field) == "object" else value, name)
    return {name: _only(value) for name, value in fields.items()}


def is_image(name: str) -> bool:
    """Tell whether a part is an image, or a part of one."""
    return FORM_SHAPES.get(_split(name)[0]) == "file"


def _split(name: str) -> tuple[str, str | None]:
    """Return the field and, of a nested one, the key; a name that nests what is flat stays whole, and unknown."""
    match = _NAME.fullmatch(name)
    return (match[1], match[2]) if match and match[1] in FORM_SHAPES else (name, None)


def _set(into: Any, name: str, value: Any, given: str) -> None:
    if not isinstance(into, dict) or name in into:
        raise Unprocessable(f"'{given[:100]}' is given twice.", param=given[:100])
    into[name] = value


def _object(value: Value, field: str) -> Any:
    try:
        return json.loads(value) if len(value) <= 16_384 else value
    except (ValueError, RecursionError):
        raise Unprocessable(f"'{field}' must be an object: send {field}[name]=value, or JSON.", param=field) from None


def _only(value: Any) -> Any:
    """Return the text itself where a list has one: it may be several between commas."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value
