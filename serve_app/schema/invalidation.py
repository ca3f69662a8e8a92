"""What a client may invalidate: exactly one of the ways to choose, and `model` to narrow a prompt down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from serve_app.errors import UnknownField, Unprocessable
from serve_app.schema.request import Tag, Text
from serve_app.schema.scalar import Number, number_schema

MAX_AGE_SECONDS = 10 * 365 * 86_400.0
Name = Annotated[Text, Field(min_length=1, max_length=200)]


def _one_way(schema: dict[str, Any]) -> None:
    """Say that exactly one field is given, or a prompt with a model; null is not given."""
    names = list(schema["properties"])
    schema["anyOf"] = [_only(names, "prompt", "model"), *(_only(names, name) for name in names)]


def _only(names: list[str], *given: str) -> dict[str, Any]:
    return {
        "required": list(given),
        "properties": {name: {"not": {"type": "null"}} if name in given else {"type": "null"} for name in names},
    }


class InvalidationRequest(BaseModel):
    """One way to choose stored videos, with all that they were made from."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, json_schema_extra=_one_way)

    key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(None, description="one video's key")
    prompt: Text | None = Field(None, description="a prompt, in any form that means the same: all sizes, all seeds")
    model: Name | None = Field(None, description="a model's name; with `prompt`, only that model's")
    fingerprint: Name | None = Field(
        None, description="what videos were made by: the weights, a text encoder, a decoder, a video encoder"
    )
    tag: Tag | None = Field(None, description="a tag that videos were asked for with")
    older_than_seconds: (
        Annotated[
            Number,
            Field(ge=0, le=MAX_AGE_SECONDS),
            WithJsonSchema(number_schema(minimum=0, maximum=MAX_AGE_SECONDS)),
        ]
        | None
    ) = Field(None, description="whatever was begun longer ago than this; 0: everything")


def parse_invalidation(fields: Mapping[str, Any]) -> InvalidationRequest:
    """Validate wire fields; raises UnknownField, or Unprocessable for a bad one and for none or several."""
    for name in fields:
        if name not in InvalidationRequest.model_fields:
            known = ", ".join(InvalidationRequest.model_fields)
            param = str(name)[:100].encode("utf-8", "replace").decode()
            raise UnknownField(f"Unknown field '{param}'. Known fields: {known}.", param=param)
    try:
        request = InvalidationRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        param = str(first["loc"][0])
        raise Unprocessable(f"'{param}' is not valid: {first['msg']}.", param=param) from None
    given = [name for name in InvalidationRequest.model_fields if getattr(request, name) is not None]
    if len(given) != 1 and given != ["prompt", "model"]:
        ways = ", ".join(f"'{name}'" for name in InvalidationRequest.model_fields)
        raise Unprocessable(
            f"Give exactly one of {ways}; 'model' may go with 'prompt'.", param=given[-1] if given else None
        )
    return request
