"""URLs that people configure: what in them is secret, how one is shown, and how a path becomes part of one.

A URL may carry credentials as user information or as query parameters, written correctly or not. So this errs on the
side of secrecy: a password with an unquoted `/` is still found, and what cannot be read is shown as its scheme alone.
"""

from __future__ import annotations

import os
import re
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlsplit

HIDDEN = "***"
_SECRET_PARAMETER = re.compile(r"user|login|pass|pwd|secret|token|key|auth|cred|sig|code", re.IGNORECASE)
_HARMLESS_PARAMETER = re.compile(r"ssl_(keyfile|certfile|ca_.*|check_hostname|cert_reqs|min_version)$", re.IGNORECASE)
_ANY_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")


def has_credentials(url: str) -> bool:
    """Tell whether `url` carries user information or a query parameter that looks like a secret."""
    _, login, _, query = _cut(url)
    return login is not None or any(_is_secret(name) for name in _names(query))


def redacted(url: str) -> str:
    """Return `url` with `***` in the place of user information, secret query parameters and a fragment."""
    scheme, login, rest, query = _cut(url)
    if query:
        fields = (part.partition("=") for part in query.split("&"))
        query = "?" + "&".join(
            f"{name}{sign}{HIDDEN if sign and _is_secret(name) else value}" for name, sign, value in fields
        )
    return f"{scheme}{'' if login is None else f'{HIDDEN}@'}{rest}{query}"


def without_secrets(text: str) -> str:
    """Return `text`, as of an error, with every URL in it redacted."""
    return _ANY_URL.sub(lambda found: redacted(found[0]), text)


def quoted_path(path: Path) -> str:
    """Return an absolute path as the path of a URL; bytes that no character stands for are kept."""
    return quote_from_bytes(os.fsencode(path))


def path_of(url: str) -> Path:
    """Return the path that `quoted_path` made part of `url`."""
    return Path(os.fsdecode(unquote_to_bytes(urlsplit(url).path)))


def is_loopback(url: str) -> bool:
    """Tell whether `url` leads to this very machine, where no proxy is asked."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or host.endswith(".localhost") or ip_address(host).is_loopback
    except ValueError:
        return False


def _cut(url: str) -> tuple[str, str | None, str, str]:
    """Return scheme with `://`, user information if there is any, the rest, and the query without its `?`."""
    start = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", url)
    scheme = start[0] if start else ""
    rest = url[len(scheme) :]
    if scheme.lower() in ("file://", "s3://"):  # an @ may be part of a path, and there is no login
        end = len(re.match(r"[^/?#]*", rest)[0])  # type: ignore[index]  # it always matches
    else:
        end = 0 if rest.startswith("/") else len(rest)
    login, at, _ = rest[:end].rpartition("@")
    if at:
        rest = rest[len(login) + 1 :]
    rest = rest.partition("#")[0]
    place, _, query = rest.partition("?")
    return scheme, login if at else None, place, query


def _names(query: str) -> list[str]:
    return [part.partition("=")[0] for part in query.split("&") if part]


def _is_secret(name: str) -> bool:
    return _SECRET_PARAMETER.search(name) is not None and _HARMLESS_PARAMETER.match(name) is None
