"""Numbers and truth values as the wire has them: themselves, or as text, because all that a form sends is text.

Each type says in its JSON Schema exactly what is taken, so that the OpenAPI document is neither wider nor narrower than
the server; `deployments` and clients use plain numbers.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

_WHOLE = r"^-?[0-9]{1,19}(\.0{1,6})?$"
_DECIMAL = r"^-?([0-9]{1,19}(\.[0-9]{0,19})?|\.[0-9]{1,19})([eE][+-]?[0-9]{1,2})?$"
_TRUTH = ("true", "false", "1", "0", "yes", "no", "on", "off", "t", "f", "y", "n")
_TRUTH_PATTERN = "^({})$".format(
    "|".join("".join(f"[{char.upper()}{char}]" if char.isalpha() else char for char in each) for each in _TRUTH)
)


def _checked(pattern: str, what: str) -> BeforeValidator:
    compiled = re.compile(pattern, re.ASCII)

    def check(value: Any) -> Any:
        if isinstance(value, bool):
            raise PydanticCustomError("bool", "Input should be a number, not true or false")
        if isinstance(value, str) and (len(value) > 64 or value.endswith("\n") or not compiled.match(value)):
            raise PydanticCustomError("number", f"Input should be {what}")
        return value

    return BeforeValidator(check)


def whole_schema(**bounds: int) -> dict[str, Any]:
    """Return the JSON Schema of a whole number within `bounds` (minimum, maximum, multipleOf), or of its text."""
    pattern = _WHOLE if bounds.get("minimum", -1) < 0 else _WHOLE.replace("-?", "")
    return {"anyOf": [{"type": "integer", **bounds}, {"type": "string", "pattern": pattern}]}


def number_schema(**bounds: float) -> dict[str, Any]:
    """Return the JSON Schema of a number within `bounds` (minimum, exclusiveMinimum, maximum), or of its text."""
    is_signed = bounds.get("minimum", bounds.get("exclusiveMinimum", -1)) < 0
    pattern = _DECIMAL if is_signed else _DECIMAL.replace("^-?", "^")
    return {"anyOf": [{"type": "number", **bounds}, {"type": "string", "pattern": pattern}]}


WholeNumber = Annotated[int, _checked(_WHOLE, "a whole number"), WithJsonSchema(whole_schema())]
Number = Annotated[float, _checked(_DECIMAL, "a number"), Field(allow_inf_nan=False), WithJsonSchema(number_schema())]
Truth = Annotated[
    bool,
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"enum": [0, 1]}, {"type": "string", "pattern": _TRUTH_PATTERN}]}),
]
