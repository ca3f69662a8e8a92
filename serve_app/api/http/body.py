"""Request bodies: bounded while they arrive, and read as one flat set of fields whatever their form.

JSON, multipart (as the OpenAI SDK sends even without a file) and URL-encoded forms all become a mapping that
`schema.parse_request` validates. Nothing here interprets a field, but that one may be large: an image comes on top of
what a body may have otherwise, so that the room for it is no room for anything else. URL-encoded forms have none:
undoing that encoding takes far longer than an image's bytes are worth.

A compressed body is decoded on its way in (`coding`), and its limits are those of what it is decoded to.

A body that is cut or malformed is refused as a whole, never read as the shorter request that is left of it. Bodies of
more than a few pages are parsed and validated in a thread, away from the event loop.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.error_responses import failure_response
from serve_app.api.http.content_coding import Decoder, codings_of
from serve_app.api.http.forms import UTF_8, content_type, multipart_fields, urlencoded_fields
from serve_app.errors import Busy, InvalidRequest, TooLarge
from serve_app.schema import VideoRequest, parse_request
from serve_app.schema.form import form_fields, is_image

T = TypeVar("T")
IMAGE_PATHS = frozenset({"/v1/videos", "/v1/videos/sync", "/v1/explain"})
MAX_VALUES = 100_000
"""In one JSON body: names, values, lists and objects; parsing so many takes about 10 ms."""
_AT_HAND = 16_384
"""Bytes of a body that is parsed where it arrives: going to a thread would take longer."""
_CODED_AT_HAND = 1_024
"""The same of a coded body, whose bytes may each stand for a thousand."""
_BASE64 = 4 / 3
_AT_ONCE = 32
"""How many bodies of the largest size a router holds; smaller images are more: what counts is their bytes."""
_MULTIPART, _URL_ENCODED = "multipart/form-data", "application/x-www-form-urlencoded"
_MOST_DATA_URLS = 16
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_threads = ThreadPoolExecutor(2, thread_name_prefix="bodies")


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
        try:
            declared = _declared(headers, limit)
        except InvalidRequest as error:
            await failure_response(error)(scope, receive, send)
            return
        seen = made = held = 0
        decoder: Decoder | None = None

        async def counted() -> Message:
            nonlocal seen, made, held, decoder
            if decoder is None:  # a body that is not read may be in any coding
                decoder = Decoder(codings_of(headers.getlist("content-encoding")), limit, lambda: _too_large(limit))
            message = await receive()
            if message["type"] != "http.request":
                return message
            seen += len(message.get("body", b""))
            if seen > limit:
                raise _too_large(limit)
            if declared is not None and not message.get("more_body"):
                _check_whole(seen, declared)
            message = await _decoded(message, decoder)
            made += len(message["body"])
            more = max(0, made - self._max_body_bytes) - held
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


def _declared(headers: Headers, limit: int) -> int | None:
    """Return the length that a body says to have; raises TooLarge, and InvalidRequest for what is no length."""
    given = set(headers.getlist("content-length"))
    if not given:
        return None
    length = given.pop()
    if given or not length.isascii() or not length.isdigit():
        raise InvalidRequest("The Content-Length is not one whole number.", param="Content-Length")
    size = int(length.lstrip("0")[:18] or "0")
    if size > limit:
        raise _too_large(limit)
    return size


async def _decoded(message: Message, decoder: Decoder) -> Message:
    """Return a piece of a body without its content codings; a long one is decoded in a thread."""
    data = message.get("body", b"")
    if len(data) > _CODED_AT_HAND and decoder.has_codings:
        data = await asyncio.get_running_loop().run_in_executor(_threads, decoder.feed, data)
    else:
        data = decoder.feed(data)
    if not message.get("more_body"):
        decoder.finish()
    return {**message, "body": data}


def _check_whole(seen: int, declared: int) -> None:
    if seen != declared:
        raise InvalidRequest(
            f"The body is not what its Content-Length says: {seen} of {declared} bytes.", param="Content-Length"
        )


async def read_request(request: Request) -> VideoRequest:
    """Read and validate the body; raises InvalidRequest, TooLarge, UnknownField or Unprocessable."""
    kind, options = _content_type(request.headers)
    limit: int = request.app.state.max_body_bytes
    if _is_json(kind):
        return await _aside(await _whole(request), lambda body: parse_request(_json_fields(body, limit)))
    if kind == _MULTIPART:
        boundary = options.get("boundary", "")
        return await _aside(
            await _whole(request), lambda body: parse_request(_form_fields(_parts(body, boundary), limit))
        )
    if kind == _URL_ENCODED:
        return await _aside(
            await _whole(request), lambda body: parse_request(_form_fields(urlencoded_fields(body), limit))
        )
    raise InvalidRequest(f"Content-Type '{kind[:100]}' is not understood; send JSON or multipart/form-data.")


async def read_object(request: Request) -> dict[str, Any]:
    """Read a JSON object of any form; raises InvalidRequest, TooLarge."""
    kind, _ = _content_type(request.headers)
    if not _is_json(kind):
        raise InvalidRequest(f"Content-Type '{kind[:100]}' is not understood; send JSON.")
    limit: int = request.app.state.max_body_bytes
    return await _aside(await _whole(request), lambda body: _json_fields(body, limit))


async def _whole(request: Request) -> bytearray:
    """Return the body, which is the caller's to clear; raises InvalidRequest when the client left in the middle."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
    except ClientDisconnect:
        raise InvalidRequest("The connection was closed before the body was complete.") from None
    return body


async def _aside(body: bytearray, read: Callable[[bytearray], T]) -> T:
    """Return what `read` makes of a body, at once if it is short, else from a thread."""
    if len(body) <= _AT_HAND:
        return read(body)
    return await asyncio.get_running_loop().run_in_executor(_threads, read, body)


def _content_type(headers: Headers) -> tuple[str, dict[str, str]]:
    """Return the media type and its parameters, JSON where a program names none; raises InvalidRequest."""
    given = headers.getlist("content-type")
    if len(given) > 1:
        raise InvalidRequest("Content-Type is given twice.", param="Content-Type")
    if not given and any(name == "origin" or name.startswith("sec-fetch-") for name in headers):
        raise InvalidRequest(
            "The body has no Content-Type, which web pages must send: application/json.", param="Content-Type"
        )  # else a page of another site could send JSON without asking first (CORS)
    kind, options = content_type(given[0]) if given else ("application/json", {})
    if options.get("charset", "utf-8").lower() not in UTF_8:
        raise InvalidRequest(f"The charset '{options['charset'][:40]}' is not read; send UTF-8.", param="Content-Type")
    return kind, options


def _kind(headers: Headers) -> str:
    return headers.get("content-type", "application/json").partition(";")[0].strip().lower()


def _is_json(kind: str) -> bool:
    return kind == "application/json" or kind.endswith("+json")


def _json_fields(body: bytearray, limit: int) -> dict[str, Any]:
    """Return the fields of a JSON object; what is beside data: URLs in it may have `limit` bytes. Clears `body`."""
    _check_rest(len(body) - sum(end - start for start, end in _data_urls(body)), limit)
    _check_count(body)
    try:
        text = body.decode("utf-8")
        body.clear()  # an image would be in memory three times
        fields = json.loads(text, object_pairs_hook=_once_each)
    except (ValueError, RecursionError):
        raise InvalidRequest("The body is not valid JSON.") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return fields


def _data_urls(body: bytearray) -> Iterable[tuple[int, int]]:
    """Yield where strings that are data: URLs stand, the first few of them; there is a quotation mark in none."""
    start = end = 0
    for _ in range(_MOST_DATA_URLS):
        start = body.find(b'"data:', end)
        end = body.find(b'"', start + 1) + 1
        if start < 0 or end <= 0:
            return
        yield start, end


def _check_count(body: bytearray) -> None:
    """Raise InvalidRequest for more values than are parsed quickly; told without parsing, by the signs between them."""
    if len(body) <= MAX_VALUES:
        return
    is_over = body.count(b'"') > 2 * MAX_VALUES
    if not is_over:
        rest = _STRING.sub(b"", body)
        is_over = sum(map(rest.count, (b",", b":", b"[", b"{"))) > MAX_VALUES
    if is_over:
        raise InvalidRequest(f"The body has more than {MAX_VALUES:,} values; send it in parts.")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):  # the parser would silently take the last one
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        shown = twice[:100].encode("utf-8", "replace").decode()
        raise InvalidRequest(f"The body names a field twice: '{shown}'.", param=shown)
    return fields


def _check_rest(size: int, limit: int) -> None:
    """Raise TooLarge when what is beside an image is over the limit."""
    if size > limit:
        raise _too_large(limit)


def _parts(body: bytearray, boundary: str) -> list[tuple[str, str | bytes]]:
    parts = multipart_fields(body, boundary)
    body.clear()
    return parts


def _form_fields(parts: Iterable[tuple[str, str | bytes]], limit: int) -> dict[str, Any]:
    parts = list(parts)
    _check_rest(sum(len(value) for name, value in parts if not is_image(name)), limit)
    return form_fields(parts)
