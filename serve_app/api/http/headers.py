"""What answers say in header fields: the one place that turns text into a field's value.

A field's value is printable ASCII (RFC 9110, section 5.5), and what reaches it may be any text: a word of a prompt, an
address that a store gave. So every answer's fields pass through `header_fields`, which percent-encodes (RFC 3986, as
UTF-8) what no value may have; a text that stands inside a list of ours is encoded whole by `percent`, so that it can
hold none of the list's own signs. Percent-encoding rather than RFC 9651's Display Strings, because every client can
undo it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote

_PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
_NOT_PRINTABLE = re.compile(r"[^\x20-\x7e]+")


def percent(text: str) -> str:
    """Return `text` in letters, digits and `-._~%` alone; `urllib.parse.unquote` gives it back."""
    return quote(text, safe="", errors="surrogatepass" if _has_surrogates(text) else "strict")


def sentence(text: str) -> str:
    """Return `text` for people to read, encoded only where it must be, so that `urllib.parse.unquote` gives it back."""
    return quote(text, safe=_PRINTABLE)


def header_fields(fields: Mapping[str, str]) -> dict[str, str]:
    """Return `fields` with values that any text may have been put into and that HTTP can carry."""
    return {name: _value(value) for name, value in fields.items()}


def _value(value: str) -> str:
    if value.isascii() and value.isprintable():
        return value.strip(" ")
    return _NOT_PRINTABLE.sub(lambda match: percent(match[0]), value).strip(" ")


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in text)
