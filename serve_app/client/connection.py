"""Where the server is and how long to wait for it; what both clients share beside the calls themselves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import httpx

from serve_app.client.calls import Call
from serve_app.errors import InvalidRequest

BASE_URL = "http://127.0.0.1:8000"
CONNECT_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class Connection:
    """A server's address, the seconds of silence after which a call is given up, and the headers of every call."""

    base_url: str
    timeout: float
    render_timeout: float
    headers: Mapping[str, str]

    @classmethod
    def to(
        cls, base_url: str | None, timeout: float, render_timeout: float, headers: Mapping[str, str] | None
    ) -> Connection:
        """Resolve the address: the argument, else ENCORE_URL, else a server on this machine.

        Raises InvalidRequest for what is not the address of a server, before anything is sent.
        """
        url = (base_url or os.environ.get("ENCORE_URL") or BASE_URL).rstrip("/")
        _host(url)
        return cls(url, timeout, render_timeout, dict(headers or {}))

    def options(self) -> dict[str, Any]:
        """Return httpx's settings; a proxy named by the environment is never used for this very machine."""
        distant = not _is_loopback(_host(self.base_url))
        return {"base_url": self.base_url, "headers": dict(self.headers), "trust_env": distant}

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


def _host(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidRequest(f"'{url}' is not the address of a server: {error}", param="base_url") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidRequest(f"'{url}' is not the address of a server, as {BASE_URL} is.", param="base_url")
    return parsed.host


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
