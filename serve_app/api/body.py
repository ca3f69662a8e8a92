"""Request bodies: bounded while they arrive, and read as one flat set of fields whatever their form.

JSON, multipart (as the OpenAI SDK sends even without a file) and URL-encoded forms all become a mapping that
`schema.parse_request` validates. Nothing here interprets a field.
"""

from __future__ import annotations

import json
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.failures import failure_response
from serve_app.errors import InvalidRequest, TooLarge, Unprocessable
from serve_app.schema import VideoRequest, parse_request

MAX_FIELDS = 64


class BodyLimit:
    """ASGI middleware that answers 413 once a body exceeds the limit, declared or not."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting its body."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared[:18]) > self._max_body_bytes:
            await failure_response(self._too_large())(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_body_bytes:
                raise self._too_large()
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"The body is larger than {self._max_body_bytes} bytes.")


async def read_request(request: Request) -> VideoRequest:
    """Read and validate the body; raises InvalidRequest, TooLarge, UnknownField or Unprocessable."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        return parse_request(_json_fields(await request.body()))
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        return parse_request(await _form_fields(request))
    raise InvalidRequest(f"Content-Type '{kind[:100]}' is not understood; send JSON or multipart/form-data.")


async def read_object(request: Request) -> dict[str, Any]:
    """Read a JSON object of any form; raises InvalidRequest, TooLarge."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise InvalidRequest(f"Content-Type '{kind[:100]}' is not understood; send JSON.")
    return _json_fields(await request.body())


def _json_fields(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body, object_pairs_hook=_once_each)
    except (ValueError, RecursionError):
        raise InvalidRequest("The body is not valid JSON.") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return fields


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):  # the parser would silently take the last one
        raise InvalidRequest("The body names a field twice.")
    return fields


async def _form_fields(request: Request) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    async with request.form(max_files=1, max_fields=MAX_FIELDS) as form:
        for name, value in form.multi_items():
            if not isinstance(value, str):
                raise Unprocessable(f"'{name[:100]}' is a file; this model takes none.", param=name[:100])
            if name in fields:
                raise Unprocessable(f"'{name[:100]}' is given twice.", param=name[:100])
            fields[name] = value
    return fields
