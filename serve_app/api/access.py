"""Who may ask from a browser: `Host` and `Origin` are checked before anything else, on every route.

A web page of any site can have its reader's browser send requests to a server on loopback or in a private network. Two
checks keep it out. `Host` must be a name of this server, because a page can have its own name resolve to this server's
address (DNS rebinding) and then counts as the same site; an IP address cannot be rebound. `Origin`, which browsers send
with every request that another site's page makes, must be that of this server, and a request that changes something may
not be `Sec-Fetch-Site: cross-site` without one. Programs that are no browsers send neither.

Names and origins beyond that are settings: `allowed_hosts`, `allowed_origins`. Allowed origins get CORS headers.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.api.error_responses import failure_response
from serve_app.errors import EncoreError, HostNotAllowed, InvalidRequest, OriginNotAllowed

EXPOSED = (
    "Accept-Ranges", "Cache-Status", "Content-Disposition", "Content-Range", "ETag", "Location", "Retry-After",
    "X-Encore-Corrected", "X-Encore-Embedding", "X-Encore-Key", "X-Encore-Outcome", "X-Encore-Seed", "X-Encore-Stored",
)  # fmt: skip
"""Header fields that scripts of allowed origins may read."""
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%25[\w.~-]+)?\]|[^\s:/?#@\[\]\\]+)(?::(\d{0,5}))?", re.ASCII)
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#@\s\\]+)", re.IGNORECASE | re.ASCII)
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_SAFE = ("GET", "HEAD", "OPTIONS")
_NAMING_SECONDS = 2.0


class Access:
    """ASGI middleware that answers 421 to a foreign `Host` and 403 to a foreign `Origin`, and CORS to allowed ones."""

    def __init__(self, app: ASGIApp, *, hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> None:
        hosts, origins = tuple(hosts), tuple(origins)
        self._app = app
        self._names = frozenset({"localhost", *(each.lower().rstrip(".") for each in hosts if "*" not in each)})
        self._patterns = _patterns(each for each in hosts if "*" in each)
        self._origins = _patterns(origins)
        self._allowed: ASGIApp = app
        if origins:
            self._allowed = CORSMiddleware(
                app,
                allow_origin_regex=f"(?is:{self._origins.pattern})",
                allow_methods=("*",),
                allow_headers=("*",),
                expose_headers=EXPOSED,
                allow_private_network=True,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, if it comes from where it may."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check(headers, scope["method"])
        except EncoreError as error:
            await failure_response(error)(scope, receive, send)
            return
        await self._allowed(scope, receive, send)

    def _check(self, headers: Headers, method: str) -> None:
        """Raise InvalidRequest, HostNotAllowed or OriginNotAllowed."""
        host = _one(headers, "host")
        if host:  # health checks have none
            self._check_host(host)
        origin = _one(headers, "origin")
        if origin is not None and self._origins.fullmatch(origin):
            return
        if origin is not None and not _is_same(origin, host or ""):
            raise _foreign(f"'{origin[:200]}'")
        if method not in _SAFE and headers.get("sec-fetch-site", "").strip().lower() == "cross-site":
            raise _foreign("another site")

    def _check_host(self, host: str) -> None:
        found = _HOST.fullmatch(host)
        if found is None:
            raise InvalidRequest("The Host is not a name or an address.", param="Host")
        name = found[1].lower()
        if name.removesuffix(".") not in self._names and not self._patterns.fullmatch(name) and not _is_local(name):
            raise HostNotAllowed(
                f"This server does not answer to the name '{name[:200]}'; its operator can add it to the setting "
                "allowed_hosts (ENCORE_ALLOWED_HOSTS).",
                param="Host",
            )


def own_names() -> frozenset[str]:
    """Return the names of this machine, as far as it knows them at once."""
    try:
        name = socket.gethostname().lower()
    except OSError:
        return frozenset()
    names = {name, name.partition(".")[0], f"{name.partition('.')[0]}.local"}
    asking = threading.Thread(target=lambda: names.add(socket.getfqdn(name).lower()), daemon=True)
    asking.start()
    asking.join(_NAMING_SECONDS)  # a name server that does not answer holds no start up
    return frozenset(each for each in tuple(names) if each)


def _patterns(texts: Iterable[str]) -> re.Pattern[str]:
    """Return what matches any of `texts`; a star stands for any characters that a host may have."""
    made = (r"[^/:@\s]+".join(map(re.escape, each.rstrip("/").split("*"))) if each != "*" else ".*" for each in texts)
    return re.compile("|".join(made) or r"(?!)", re.IGNORECASE | re.DOTALL)


def _one(headers: Headers, name: str) -> str | None:
    given = headers.getlist(name)
    if len(given) > 1:
        raise InvalidRequest(f"{name.capitalize()} is given twice.", param=name.capitalize())
    return given[0].strip() if given else None


def _is_local(name: str) -> bool:
    """Tell whether a host is an address, or a name that browsers resolve to loopback by themselves (RFC 6761)."""
    try:
        ipaddress.ip_address(name.strip("[]").partition("%")[0])
    except ValueError:
        return name.removesuffix(".").endswith(".localhost")
    return True


def _is_same(origin: str, host: str) -> bool:
    """Tell whether `origin` is where `host` is, whatever the scheme: TLS may end before this server."""
    found = _ORIGIN.fullmatch(origin)
    if found is None:
        return False
    port = _DEFAULT_PORTS.get(found[1].lower(), "")
    return found[2].lower().removesuffix(f":{port}") == host.lower().removesuffix(f":{port}") != ""


def _foreign(who: str) -> OriginNotAllowed:
    return OriginNotAllowed(
        f"A web page of {who} asks, which may not use this server; its operator can add its origin to the setting "
        "allowed_origins (ENCORE_ALLOWED_ORIGINS).",
        param="Origin",
    )
