"""What the OpenAPI document says beyond the routes' own signatures: errors, and the ranges of this server's model.

Every status that a route can answer is in the document, and its bodies are as wide as what is taken: ranges that depend
on the model or on a setting are put in when the document is made.
"""

from __future__ import annotations

import copy
from typing import Any

from fastapi import FastAPI

from serve_app.core import IntRange, ModelCard
from serve_app.schema import ErrorBody
from serve_app.schema.scalar import number_schema, whole_schema

_TOLD = {
    400: "malformed",
    403: "a web page of another site asks (setting `allowed_origins`)",
    404: "no such thing",
    405: "this path has no such method; `Allow` names those it has",
    408: "the body took too long to arrive",
    409: "too many invalidations are in force",
    413: "too large",
    415: "a content coding or a picture's format that is not read; `Accept-Encoding` names the codings that are",
    416: "the range lies beyond the content",
    421: "the `Host` is none of this server's names (setting `allowed_hosts`)",
    422: "not allowed; `param` names the field",
    429: "queue full; see Retry-After",
    500: "the server failed",
    503: "not now; see Retry-After",
    504: "`Cache-Control: only-if-cached`, and no tier has it",
}
_NULL = {"type": "null"}
Responses = dict[int | str, dict[str, Any]]


def errors(*statuses: int) -> Responses:
    """Return the documentation of errors, in the OpenAI form."""
    return {status: {"model": ErrorBody, "description": _TOLD[status]} for status in statuses}


EVERYWHERE = errors(400, 403, 405, 421, 422, 500, 503)
"""What each route can answer."""
WITH_BODY = errors(408, 413, 415, 429)
"""What routes that read a body can answer too."""


def without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object's fields as a form has them: it cannot say null, an absent field is its null."""
    made = copy.deepcopy(schema)
    for each in made["properties"].values():
        each.pop("default", None)
        if "anyOf" in each:
            each["anyOf"] = [kind for kind in each["anyOf"] if kind != _NULL]
    return made


def document(app: FastAPI, card: ModelCard, max_prompt_chars: int) -> None:
    """Make the document of `app` say what the model of `card` takes."""
    made = app.openapi

    def narrowed() -> dict[str, Any]:
        if app.openapi_schema is None:
            whole = copy.deepcopy(made())
            _narrow(whole, _fields(card, max_prompt_chars))
            app.openapi_schema = whole
        return app.openapi_schema

    app.openapi = narrowed  # type: ignore[method-assign]  # FastAPI's own way to extend the document


def _fields(card: ModelCard, max_prompt_chars: int) -> dict[str, dict[str, Any]]:
    guidance = card.guidance_scale
    ranges = {name: getattr(card, name) for name in ("width", "height", "num_frames", "fps", "num_inference_steps")}
    return {
        **{name: whole_schema(**_bounds(allowed)) for name, allowed in ranges.items()},
        "guidance_scale": number_schema(minimum=guidance.minimum, maximum=guidance.maximum),
        "model": {"enum": [card.name, *card.aliases]},
        "prompt": {"maxLength": 2 * max_prompt_chars},
        "negative_prompt": {"maxLength": 2 * max_prompt_chars},
    }


def _bounds(allowed: IntRange) -> dict[str, int]:
    step = allowed.step if allowed.minimum % allowed.step == 0 else 1
    bounds = {"minimum": allowed.minimum, "maximum": allowed.maximum}
    return bounds | ({"multipleOf": step} if step > 1 else {})


def _narrow(whole: dict[str, Any], fields: dict[str, dict[str, Any]]) -> None:
    """Narrow the bodies that are requests for a video, in place."""
    for path in ("/v1/videos", "/v1/videos/sync", "/v1/explain"):
        for content in whole["paths"][path]["post"]["requestBody"]["content"].values():
            properties = content["schema"]["properties"]
            for name, narrower in fields.items():
                properties[name] = _narrowed(properties[name], narrower)


def _narrowed(schema: dict[str, Any], narrower: dict[str, Any]) -> dict[str, Any]:
    """Return `schema` with `narrower` in place of its alternatives that are not null."""
    kept = {name: value for name, value in schema.items() if name != "anyOf"}
    if "anyOf" not in schema:
        return kept | narrower
    others = narrower.get("anyOf") or [{"type": "string", **narrower}]
    return kept | {"anyOf": [*others, *(each for each in schema["anyOf"] if each == _NULL)]}
