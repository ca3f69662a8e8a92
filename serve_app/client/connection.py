"""Where the server is and how long to wait for it; what both clients share beside the calls themselves."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from serve_app.client.calls import Call
from serve_app.errors import InvalidRequest
from serve_app.setting_sources import of_file
from serve_app.urls import has_credentials, is_loopback, redacted, without_secrets

Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)

BASE_URL = "http://127.0.0.1:8000"
CONNECT_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class Connection:
    """A server's address, the seconds of silence after which a call is given up, and the headers of every call.

    What logs in (`http://USER:PASSWORD@HOST`) is kept apart from the address, so that no log and no error tells it.
    """

    base_url: str
    timeout: float
    render_timeout: float
    headers: Mapping[str, str]
    login: tuple[str, str] | None = field(default=None, repr=False)

    @classmethod
    def to(
        cls, base_url: str | None, timeout: float, render_timeout: float, headers: Mapping[str, str] | None
    ) -> Connection:
        """Resolve the address: the argument, else ENCORE_URL or ENCORE_URL_FILE, else a server on this machine.

        It may end in `/v1`, as OpenAI clients want it. Raises InvalidRequest for what is not the address of a server,
        before anything is sent.
        """
        url = _parsed(base_url or os.environ.get("ENCORE_URL") or _of_file() or BASE_URL)
        login = (url.username, url.password) if url.userinfo else None
        plain = str(url.copy_with(username=None, password=None)).rstrip("/").removesuffix("/v1").rstrip("/")
        return cls(plain, timeout, render_timeout, dict(headers or {}), login)

    def open(self, kind: Callable[..., Http], transport: Any) -> Http:
        """Return an httpx client; raises InvalidRequest when the environment names a proxy that cannot be used."""
        try:
            return kind(transport=transport, **self.options())
        except (ImportError, ValueError) as error:
            message = f"The proxy that the environment names (http_proxy, all_proxy) cannot be used: {error}"
            raise InvalidRequest(without_secrets(message), param="base_url") from None

    def options(self) -> dict[str, Any]:
        """Return httpx's settings; a proxy named by the environment is never used for this very machine."""
        distant = not is_loopback(self.base_url)
        return {
            "base_url": self.base_url, "headers": dict(self.headers), "trust_env": distant, "auth": self.login
        }  # fmt: skip

    def request(self, http: httpx.Client | httpx.AsyncClient, call: Call[Any]) -> httpx.Request:
        """Return one call as a request of `http`; raises InvalidRequest for values that JSON or a URL cannot hold."""
        read = self.render_timeout if call.slow else max(self.timeout, call.patience)
        timeout = httpx.Timeout(self.timeout, read=read, connect=min(self.timeout, CONNECT_TIMEOUT))
        try:
            return http.build_request(
                call.method, call.path, params=call.params, json=call.json, headers=dict(call.headers), timeout=timeout
            )
        except (httpx.InvalidURL, TypeError, ValueError) as error:
            raise InvalidRequest(f"The request cannot be sent: {error}.") from error


def _of_file() -> str | None:
    try:
        return of_file("url")
    except ValueError as error:
        raise InvalidRequest(f"{error}.", param="base_url") from None


def _parsed(url: str) -> httpx.URL:
    """Return the address; what is said of a wrong one repeats no password."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        reason = "" if has_credentials(url) else f": {error}"
        raise InvalidRequest(f"'{redacted(url)}' is not the address of a server{reason}", param="base_url") from None
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise InvalidRequest(f"'{redacted(url)}' is not the address of a server, as {BASE_URL} is.", param="base_url")
    return parsed
