"""Request bodies: bounded while they arrive, and read as one flat set of fields whatever their form.

JSON, multipart (as the OpenAI SDK sends even without a file) and URL-encoded forms all become a mapping that
`schema.parse_request` validates. Nothing here interprets a field, but that one may be large: an image comes on top of
what a body may have otherwise, so that the room for it is no room for anything else. URL-encoded forms have none:
undoing that encoding takes far longer than an image's bytes are worth, on the event loop.
"""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.failures import failure_response
from serve_app.errors import Busy, InvalidRequest, TooLarge, Unprocessable
from serve_app.schema import VideoRequest, parse_request

MAX_FIELDS = 64
IMAGE = "input_reference"
IMAGE_PATHS = frozenset({"/v1/videos", "/v1/videos/sync", "/v1/explain"})
_NO_LIMIT = 2**31  # of one field of a form: the body has one
_BASE64 = 4 / 3
_AT_ONCE = 32
"""How many bodies of the largest size a router holds; smaller images are more: what counts is their bytes."""
_MULTIPART, _URL_ENCODED = "multipart/form-data", "application/x-www-form-urlencoded"
_DATA_URL = re.compile(rb'"data:(?:[^"\\]++|\\/)*+"')  # PHP writes / as \/
_PART_OF_IMAGE = re.compile(rf"{IMAGE}\[(\w{{1,20}})\]")
"""How the OpenAI SDK flattens an object into a form."""


class BodyLimit:
    """ASGI middleware that answers 413 once a body exceeds the limit of its path, declared or not.

    What bodies have beyond the ordinary limit is counted over all requests that are being answered, because one that
    waits for its video holds its body: a few hundred MB at most, and then 429.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, max_image_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._with_image = max_body_bytes + round(_BASE64 * max_image_bytes)
        self._room = _AT_ONCE * (self._with_image - max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting its body."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        path = scope["path"].removeprefix(scope.get("root_path", ""))  # Serve's route_prefix
        has_room = path in IMAGE_PATHS and (_is_json(_kind(headers)) or _kind(headers) == _MULTIPART)
        limit = self._with_image if has_room else self._max_body_bytes
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared[:18]) > limit:
            await failure_response(_too_large(limit))(scope, receive, send)
            return
        seen = held = 0

        async def counted() -> Message:
            nonlocal seen, held
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise _too_large(limit)
            more = max(0, seen - self._max_body_bytes) - held
            if more > self._room:
                raise Busy("Too many images are being worked on; try again in 5 s.", retry_after=5)
            self._room -= more
            held += more
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._room += held


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is larger than {limit} bytes.")


async def read_request(request: Request) -> VideoRequest:
    """Read and validate the body; raises InvalidRequest, TooLarge, UnknownField or Unprocessable."""
    kind = _kind(request.headers)
    if _is_json(kind):
        body = await request.body()
        _check_rest(request, len(body) - sum(len(each) for each in _DATA_URL.findall(body)))
        return parse_request(_json_fields(body))
    if kind in (_MULTIPART, _URL_ENCODED):
        return parse_request(await _form_fields(request))
    raise InvalidRequest(f"Content-Type '{kind[:100]}' is not understood; send JSON or multipart/form-data.")


async def read_object(request: Request) -> dict[str, Any]:
    """Read a JSON object of any form; raises InvalidRequest, TooLarge."""
    kind = _kind(request.headers)
    if not _is_json(kind):
        raise InvalidRequest(f"Content-Type '{kind[:100]}' is not understood; send JSON.")
    return _json_fields(await request.body())


def _kind(headers: Headers) -> str:
    return headers.get("content-type", "application/json").partition(";")[0].strip().lower()


def _is_json(kind: str) -> bool:
    return kind == "application/json" or kind.endswith("+json")


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


def _check_rest(request: Request, size: int) -> None:
    """Raise TooLarge when what is beside an image is over the limit."""
    limit: int = request.app.state.max_body_bytes
    if size > limit:
        raise _too_large(limit)


async def _form_fields(request: Request) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    rest = 0
    async with request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=_NO_LIMIT) as form:
        for name, value in form.multi_items():
            if not isinstance(value, str) and name != IMAGE:
                raise Unprocessable(f"'{name[:100]}' is a file; only '{IMAGE}' may be one.", param=name[:100])
            part = _PART_OF_IMAGE.fullmatch(name)
            into = fields if part is None else fields.setdefault(IMAGE, {})
            field = name if part is None else part[1]
            if not isinstance(into, dict) or field in into:
                raise Unprocessable(f"'{name[:100]}' is given twice.", param=name[:100])
            into[field] = value if isinstance(value, str) else await value.read()
            rest += 0 if name == IMAGE or part is not None else len(into[field])
    _check_rest(request, rest)
    return fields
