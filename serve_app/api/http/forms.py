"""Forms, read whole or refused: multipart/form-data (RFC 7578) and application/x-www-form-urlencoded.

A form that was cut is a shorter form, with options missing that the client had set, and a video of the shorter form is
a wrong answer. So nothing is guessed: the closing boundary must be there and nothing may follow it, a part has one name
and UTF-8, an encoding that is not undone is refused. Usual parsers (python-multipart, Starlette's over it) take what
they got as complete, which is why this one is here; it looks for delimiters in a body that is there already, counts
before it splits, and costs time only in proportion to the body.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from urllib.parse import unquote_to_bytes

from serve_app.errors import InvalidRequest

MAX_FIELDS = 64
_MAX_HEAD, _MAX_HEADERS = 8_192, 16
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")  # RFC 2046, section 5.1.1
_HEADER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,100}):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_OPTION = re.compile(rb';[ \t]*([0-9A-Za-z!#$%&\'*+\-.^_`|~]+)=(?:"((?:[^"\\]|\\.)*+)"|([^\s;"]*))[ \t]*')
_UNESCAPED = re.compile(rb'\\(["\\])')
_BAD_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_PAGE = 16_384
_AS_IT_IS = (b"7bit", b"8bit", b"binary")
UTF_8 = ("utf-8", "utf8", "us-ascii", "ascii")
"""Names of the only character set that is read."""

Field = tuple[str, str | bytes]


@dataclass(frozen=True, slots=True)
class _Head:
    """What the header fields of a part say."""

    name: str
    is_file: bool


def multipart_fields(body: bytes | bytearray, boundary: str) -> list[Field]:
    """Return the parts in order: names with text, or with bytes where the part is a file. Raises InvalidRequest."""
    if not _BOUNDARY.fullmatch(boundary):
        raise InvalidRequest("The Content-Type has no boundary, or none that RFC 2046 allows.")
    return [_part(memoryview(body)[start:end]) for start, end in _spans(body, b"--" + boundary.encode())]


def urlencoded_fields(text: bytes | bytearray, what: str = "form") -> list[tuple[str, str]]:
    """Return the pairs of a URL-encoded form or query, in order; raises InvalidRequest."""
    if not text:
        return []
    if text.count(b"&") >= MAX_FIELDS:
        raise InvalidRequest(f"The {what} has more than {MAX_FIELDS} fields.")
    return [_pair(pair, what) for pair in text.split(b"&")]


def _pair(pair: bytes | bytearray, what: str) -> tuple[str, str]:
    name, equals, value = pair.partition(b"=")
    if not name or not equals:
        raise InvalidRequest(f"The {what} has a '&' or '=' too many; fields are name=value, percent-encoded.")
    known = _decoded(name, what, None)
    return known, _decoded(value, what, known[:100])


def _decoded(text: bytes | bytearray, what: str, param: str | None) -> str:
    if _BAD_PERCENT.search(text):
        raise InvalidRequest(f"The {what} has a '%' without two hex digits.", param=param)
    return _utf_8(b"".join(map(unquote_to_bytes, _pages(bytes(text.replace(b"+", b" "))))), param)


def _pages(text: bytes) -> Iterator[bytes]:
    """Yield `text` in pieces, cut where no escape is: undoing takes fifty times an escape's own memory."""
    start = 0
    while start < len(text):
        end = start + _PAGE
        if (cut := text.rfind(b"%", end - 2, end)) >= 0:
            end = cut
        yield text[start:end]
        start = end


def _utf_8(data: bytes | bytearray | memoryview, param: str | None) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest("The body is not valid UTF-8.", param=param) from None


def _spans(body: bytes | bytearray, delimiter: bytes) -> Iterator[tuple[int, int]]:
    """Yield where each part lies between its delimiters; raises InvalidRequest where the form is not whole."""
    between = b"\r\n" + delimiter
    if body.count(between) > MAX_FIELDS:
        raise InvalidRequest(f"The form has more than {MAX_FIELDS} fields.")
    at = len(b"\r\n") if body.startswith(between) else 0
    if not body.startswith(delimiter, at):
        raise InvalidRequest("The form does not begin with its boundary.")
    start = at + len(delimiter)
    while not _closes(body, start):
        start = _line_end(body, start)
        end = body.find(between, start - 2)  # a part may be empty: then the CRLF before it is the delimiter's
        if end < 0:
            raise InvalidRequest("The form is incomplete: its closing boundary is missing.")
        yield start, max(start, end)
        start = end + len(between)


def _closes(body: bytes | bytearray, start: int) -> bool:
    """Tell whether the delimiter before `start` is the closing one, after which nothing may come."""
    if not body.startswith(b"--", start):
        return False
    if len(body) - start > _MAX_HEAD or bytes(body[start + 2 :]).strip(b" \t") not in (b"", b"\r\n"):
        raise InvalidRequest("Something follows the form's closing boundary.")
    return True


def _line_end(body: bytes | bytearray, start: int) -> int:
    end = body.find(b"\r\n", start, start + 200)
    if end < 0 or bytes(body[start:end]).strip(b" \t"):
        raise InvalidRequest("The form is incomplete or malformed at a boundary.")
    return end + 2


def _part(part: memoryview) -> Field:
    head, end = _headers(bytes(part[:_MAX_HEAD]))
    content = part[end:]
    return head.name, bytes(content) if head.is_file else _utf_8(content, head.name[:100])


def _headers(start: bytes) -> tuple[_Head, int]:
    """Return what the header fields of a part say, and where its content begins."""
    end = start.find(b"\r\n\r\n")
    lines = start[: max(end, 0)].split(b"\r\n", _MAX_HEADERS)
    if end < 0 or len(lines) > _MAX_HEADERS:
        raise InvalidRequest("A part of the form has no header fields, or too long ones.")
    fields: dict[bytes, bytes] = {}
    for line in lines:
        found = _HEADER.fullmatch(line)
        if found is None or found[1].lower() in fields:
            raise InvalidRequest("A part of the form has a header field that is malformed or given twice.")
        fields[found[1].lower()] = found[2].strip()
    head = _disposition(fields.get(b"content-disposition", b""))
    if fields.get(b"content-type", b"").lower().startswith(b"image/"):
        head = replace(head, is_file=True)  # RFC 7578 leaves the file name out where it likes
    _check_encoding(fields, head)
    return head, end + 4


def _disposition(value: bytes) -> _Head:
    kind, options = _options(value)
    if kind != b"form-data" or not options.get(b"name"):
        raise InvalidRequest("Every part of a form needs 'Content-Disposition: form-data' with a name.")
    is_file = bool(options.get(b"filename")) or b"filename*" in options  # browsers send "" where no file is chosen
    return _Head(_utf_8(options[b"name"], None), is_file)


def _check_encoding(fields: dict[bytes, bytes], head: _Head) -> None:
    param = head.name[:100]
    if fields.get(b"content-transfer-encoding", b"binary").lower() not in _AS_IT_IS:
        raise InvalidRequest("Parts of a form are sent as they are, without Content-Transfer-Encoding.", param=param)
    if head.is_file or b"content-type" not in fields:
        return
    charset = _options(fields[b"content-type"])[1].get(b"charset", b"utf-8")
    if charset.decode("latin-1").lower() not in UTF_8:
        raise InvalidRequest("Text in a form must be UTF-8.", param=param)


def _options(value: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """Return the value before the first semicolon, and the options after it, each given once; InvalidRequest."""
    kind, _, _ = value.partition(b";")
    options: dict[bytes, bytes] = {}
    at = len(kind)
    while at < len(value):
        found = _OPTION.match(value, at)
        if found is None or found[1].lower() in options:
            raise InvalidRequest("A part of the form has a header field that is malformed or says something twice.")
        options[found[1].lower()] = _UNESCAPED.sub(rb"\1", found[2]) if found[3] is None else found[3]
        at = found.end()
    return kind.strip().lower(), options


def content_type(value: str) -> tuple[str, dict[str, str]]:
    """Return the media type and its parameters, both lower-case but for values; raises InvalidRequest."""
    kind, options = _options(value.encode("utf-8", "replace"))
    return kind.decode("utf-8"), {name.decode("utf-8"): each.decode("utf-8") for name, each in options.items()}
