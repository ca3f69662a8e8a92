"""Which URLs the settings take: checked by shape alone, so that a mistake is told at once and nothing is asked.

Messages name what is wrong and never repeat the URL: a part of a password may stand where a port should.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

REDIS = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster")
_QUOTING = "in a user name or password, write % as %25, / as %2F, @ as %40, : as %3A, # as %23 and ? as %3F"


def check_url(setting: str, url: str) -> None:
    """Raise ValueError when `url` cannot be the value of `setting`."""
    if any(ord(character) <= ord(" ") for character in url):
        raise ValueError("a URL has no blanks and no line breaks; write a blank as %20")
    try:
        parts = urlsplit(url)
        for host in parts.netloc.rpartition("@")[2].split(","):  # a cluster has several
            urlsplit(f"//{host}").port  # noqa: B018 - it raises for what is no port
    except ValueError:
        raise ValueError(f"it cannot be read as a URL: a port is a number from 0 to 65535; {_QUOTING}") from None
    if parts.scheme in ("file", "s3") and ("?" in url or "#" in url):
        raise ValueError("it has something after a ? or #; in a path, write ? as %3F and # as %23")
    check = _CHECKS.get(setting, _http)
    check(parts)


def _redis(parts: SplitResult) -> None:
    if parts.scheme not in REDIS:
        known = ", ".join(f"{each}://" for each in REDIS)
        raise ValueError(f"it begins with {_scheme(parts)}; it may begin with {known}")
    if parts.scheme == "unix":
        if not parts.path.startswith("/") or parts.path == "/":
            raise ValueError("a Unix socket is unix:///absolute/path")
    elif not parts.netloc.rpartition("@")[2]:
        raise ValueError(f"it names no host, as {parts.scheme}://HOST:PORT does; {_QUOTING}")
    elif not _is_database(parts.path):
        raise ValueError(f"after the host comes at most a database's number, as in redis://HOST:PORT/0; {_QUOTING}")
    if parts.fragment:
        raise ValueError(f"a Redis URL has nothing after a #; {_QUOTING}")


def _is_database(path: str) -> bool:
    return path in ("", "/") or path[1:].isdecimal()


def _objects(parts: SplitResult) -> None:
    if parts.scheme == "s3":
        if not parts.netloc or "@" in parts.netloc:
            raise ValueError("a bucket is s3://BUCKET/PREFIX; credentials come from where AWS tools look for them")
    elif parts.scheme != "file":
        raise ValueError(f"it begins with {_scheme(parts)}; it is file:///folder or s3://bucket/prefix")
    elif parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise ValueError("a folder is file:///absolute/path, with three slashes")


def _s3_endpoint(parts: SplitResult) -> None:
    _http(parts)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("it is an address alone; credentials come from where AWS tools look (AWS_ACCESS_KEY_ID ...)")


def _http(parts: SplitResult) -> None:
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"it begins with {_scheme(parts)}; it is http://HOST:PORT or https://HOST:PORT")
    if not parts.hostname:
        raise ValueError(f"it names no host, as http://HOST:PORT does; {_QUOTING}")


def _scheme(parts: SplitResult) -> str:
    return f"{parts.scheme}://" if parts.scheme else "no scheme"


_CHECKS: dict[str, Callable[[SplitResult], None]] = {
    "redis_url": _redis,
    "jobs_url": _redis,
    "l3_url": _objects,
    "s3_endpoint_url": _s3_endpoint,
    "s3_public_endpoint_url": _s3_endpoint,
}
