"""A stored video or a picture of it over HTTP: strong ETag, 304, single byte ranges (RFC 9110, sections 13 and 14).

Several ranges in one request are answered with the whole file, which RFC 9110 allows and browsers accept.
"""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.error_responses import failure_response
from serve_app.api.http.cache_status import cache_status
from serve_app.api.http.headers import header_fields
from serve_app.core import Entry, Outcome
from serve_app.errors import RangeNotSatisfiable
from serve_app.service.jobs.job import Job

_RANGE = re.compile(r"bytes\s*=\s*(\d*)\s*-\s*(\d*)", re.ASCII | re.IGNORECASE)


_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_ENDINGS = {"video/mp4": "mp4", "image/webp": "webp", "image/jpeg": "jpg"}


def disposition(name: str, media_type: str) -> str:
    """Return the Content-Disposition that has browsers show the file, and save it under `name` (RFC 6266)."""
    return f'inline; filename="{_UNSAFE.sub("_", name)[:100]}.{_ENDINGS.get(media_type, "bin")}"'


def content_response(request: Request, entry: Entry, media_type: str, headers: dict[str, str]) -> Response:
    """Answer a GET or HEAD for `entry`, whose bytes are of `media_type`; `headers` are added to every answer."""
    etag = f'"{entry.digest}"'
    headers = header_fields(headers | {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache"})
    if _matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    try:
        wanted = _wanted_range(request, etag, entry.size)
    except RangeNotSatisfiable as error:
        refusal = failure_response(error)
        refusal.headers.update(headers | {"Content-Range": f"bytes */{entry.size}"})
        return refusal
    if wanted is None:
        return _body(request, entry.data, 200, media_type, headers)
    first, last = wanted
    headers["Content-Range"] = f"bytes {first}-{last}/{entry.size}"
    return _body(request, entry.data[first : last + 1], 206, media_type, headers)


def redirection(url: str, job: Job) -> Response:
    """Send a GET for a job's video to `url`, which is good for a while only and for this client."""
    headers = {"Location": url, "Cache-Status": cache_status(Outcome.L3), "X-Encore-Key": job.keys.video}
    return Response(status_code=307, headers=header_fields(headers | {"Cache-Control": "no-store"}))


def _body(request: Request, data: bytes, status: int, media_type: str, headers: dict[str, str]) -> Response:
    if request.method == "HEAD":
        headers = headers | {"Content-Length": str(len(data))}
        data = b""
    return Response(data, status, headers, media_type=media_type)


def _matches(if_none_match: str | None, etag: str) -> bool:
    if if_none_match is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return if_none_match.strip() == "*" or etag in tags


def _wanted_range(request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """Return (first, last) byte, None for the whole; raises RangeNotSatisfiable.

    Ranges are defined for GET alone (RFC 9110, section 14.2).
    """
    header = request.headers.get("range")
    if header is None or request.method != "GET" or request.headers.get("if-range", etag) != etag:
        return None
    parsed = _RANGE.fullmatch(header.strip())
    if parsed is None or not (parsed[1] or parsed[2]):
        return None
    if not parsed[1]:
        first, last = max(0, size - _bounded(parsed[2])), size - 1
    else:
        first, last = _bounded(parsed[1]), min(_bounded(parsed[2]) if parsed[2] else size, size - 1)
        if parsed[2] and _bounded(parsed[2]) < first:
            return None  # not a valid range at all: RFC 9110 says ignore it
    if first > last:
        raise RangeNotSatisfiable(f"The range {header[:100]} lies beyond the {size} bytes of this file.")
    return first, last


def _bounded(digits: str) -> int:
    return int(digits.lstrip("0")[:18] or "0")
