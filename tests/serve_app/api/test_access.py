"""Web pages of other sites are kept out: `Host` and `Origin` are checked on every route, settings allow more."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from serve_app.api.access import own_names
from serve_app.api.api import build_api
from serve_app.setting_names import names
from serve_app.settings import Settings
from tests.serve_app.api.http.test_body import error_of
from tests.serve_app.api.test_strict_route import ROUTES
from tests.serve_app.service.rig import Rig, until

ASK = {"prompt": "a red circle moves left"}
EVERYWHERE = [*ROUTES, ("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/nowhere"), ("PUT", "/v1/videos")]
Client = Callable[..., Any]


@pytest.fixture
def client(rig: Rig) -> Client:
    """Make clients of a server with some settings."""

    @asynccontextmanager
    async def made(**access: Any) -> AsyncIterator[httpx.AsyncClient]:
        app = build_api(rig.service(), max_body_bytes=10_000, access=access)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8000") as http:
            yield http

    return made


async def test_a_foreign_host(rig: Rig, http: httpx.AsyncClient) -> None:
    """A name that is not the server's (DNS rebinding) is a 421 on every route, which names the setting; no effect."""
    for method, path in EVERYWHERE:
        for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", "encore"):
            error = error_of(await http.request(method, path, headers={"Host": host}), 421)
            assert (error["code"], error["param"]) == ("host_not_allowed", "Host")
            assert "allowed_hosts" in error["message"]
    assert rig.renderer.asked == []


async def test_a_foreign_origin(rig: Rig, http: httpx.AsyncClient) -> None:
    """A page of another site or port is a 403 on every route, reads too, and gets no CORS header."""
    foreign = ("https://evil.example", "null", "http://localhost:3000", "http://localhost", "file://", "", "http://x@y")
    for method, path in EVERYWHERE:
        for origin in foreign:
            answer = await http.request(method, path, headers={"Host": "localhost:8000", "Origin": origin})
            error = error_of(answer, 403)
            assert (error["code"], error["param"]) == ("origin_not_allowed", "Origin")
            assert "allowed_origins" in error["message"]
            assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert rig.renderer.asked == []


async def test_own_hosts(http: httpx.AsyncClient) -> None:
    """Loopback names and all addresses are answered without a setting: an address cannot be rebound."""
    for host in (
        "localhost", "LocalHost:8000", "localhost.", "app.localhost:1", "127.0.0.1:8000", "[::1]:8000", "[::1]",
        "192.168.1.20:8000", "10.0.0.7", "[fe80::1%25eth0]:8000", "[2001:db8::1]",
    ):  # fmt: skip
        assert (await http.get("/healthz", headers={"Host": host})).status_code == 200, host


async def test_a_malformed_host(http: httpx.AsyncClient) -> None:
    """What is no host at all is a 400, and so are two of them, even if one is allowed."""
    for host in ("a b", "http://localhost", "localhost:port", "localhost:1:1", "user@localhost", "[::1", "localhost/"):
        error_of(await http.get("/healthz", headers={"Host": host}), 400)
    error_of(await http.get("/healthz", headers=[("Host", "localhost"), ("Host", "evil.example")]), 400)


async def test_no_host(http: httpx.AsyncClient) -> None:
    """A health check without a Host is answered."""
    request = http.build_request("GET", "/healthz")
    del request.headers["host"]
    assert (await http.send(request)).status_code == 200


async def test_the_machines_own_names(client: Client) -> None:
    """A router takes the names of its machine; so `http://HOSTNAME:8000` needs no setting."""
    name = socket.gethostname()
    assert name.lower() in own_names()
    async with client(hosts=own_names()) as http:
        for host in (name, f"{name.upper()}:8000", f"{name.partition('.')[0]}.local"):
            assert (await http.get("/healthz", headers={"Host": host})).status_code == 200


async def test_own_names_wait_for_no_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that fails leaves the name that the machine knows by itself."""

    def fails(_: str) -> str:
        raise OSError("no name server")

    monkeypatch.setattr("threading.excepthook", lambda _: None)
    monkeypatch.setattr(socket, "getfqdn", fails)
    assert socket.gethostname().lower() in own_names()


async def test_allowed_hosts(client: Client) -> None:
    """Names of the setting are answered, `*.` stands for what is before a domain, `*` for all; others stay a 421."""
    async with client(hosts=names("encore.example.com, *.apps.example,encore")) as http:
        for host in ("encore.example.com", "Encore.Example.com:443", "a.apps.example", "a.b.apps.example:80", "encore"):
            assert (await http.get("/healthz", headers={"Host": host})).status_code == 200, host
        for host in ("example.com", "apps.example", "encore.example.com.evil", "evil/.apps.example", "xapps.example"):
            assert (await http.get("/healthz", headers={"Host": host})).status_code in (400, 421), host
    async with client(hosts=("*",)) as http:
        assert (await http.get("/healthz", headers={"Host": "evil.example"})).status_code == 200


async def test_the_same_origin(http: httpx.AsyncClient) -> None:
    """Pages of this server, such as /docs, may use it, also where TLS ends before it."""
    for origin, host in (
        ("http://localhost:8000", "localhost:8000"), ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://[::1]:8000", "[::1]:8000"), ("https://localhost", "localhost"), ("http://localhost", "localhost:80"),
        ("https://LOCALHOST", "localhost:443"),
    ):  # fmt: skip
        headers = {"Origin": origin, "Host": host, "Sec-Fetch-Site": "same-origin"}
        assert (await http.post("/v1/explain", json=ASK, headers=headers)).status_code == 200, origin


async def test_cross_site_without_an_origin(rig: Rig, http: httpx.AsyncClient) -> None:
    """`Sec-Fetch-Site: cross-site` is enough for a 403 where something would change, and harmless for a read."""
    headers = {"Sec-Fetch-Site": "cross-site", "Content-Type": "application/json"}
    for path in ("/v1/videos", "/v1/cache/invalidate", "/invalidate?key=" + "a" * 64):
        error_of(await http.post(path, json=ASK, headers=headers), 403)
    error_of(await http.delete("/v1/videos/x", headers=headers), 403)
    assert (await http.get("/v1/models", headers=headers)).status_code == 200
    assert rig.renderer.asked == []


async def test_allowed_origins(client: Client) -> None:
    """An allowed origin may read and write, sees the answer's header fields, and may ask before (preflight)."""
    async with client(origins=names("https://app.example.com https://*.apps.example:8443")) as http:
        for origin in ("https://app.example.com", "https://a.apps.example:8443"):
            headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
            answer = await http.post("/v1/explain", json=ASK, headers=headers)
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)
            assert "X-Encore-Key" in answer.headers["access-control-expose-headers"]
            assert "Origin" in answer.headers["vary"]
            assert (await http.get("/v1/videos", headers=headers)).headers["access-control-allow-origin"] == origin
            refused = await http.post("/v1/explain", json={"prompt": "p", "seed": "x"}, headers=headers)
            assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (422, origin)
        for origin in ("http://app.example.com", "https://app.example.com:444", "https://apps.example:8443", "null"):
            answer = await http.get("/v1/videos", headers={"Origin": origin})
            error_of(answer, 403)
            assert "access-control-allow-origin" not in answer.headers


async def test_preflight(client: Client) -> None:
    """OPTIONS of an allowed origin is answered for every method and header; of a foreign one it is a 403."""
    asks = {"Access-Control-Request-Method": "DELETE", "Access-Control-Request-Headers": "content-type,idempotency-key"}
    async with client(origins=("https://app.example.com",)) as http:
        answer = await http.options("/v1/videos/x", headers=asks | {"Origin": "https://app.example.com"})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://app.example.com"
        assert "DELETE" in answer.headers["access-control-allow-methods"]
        assert answer.headers["access-control-allow-headers"] == "content-type,idempotency-key"
        error_of(await http.options("/v1/videos/x", headers=asks | {"Origin": "https://evil.example"}), 403)
    async with client(origins=("*",)) as http:
        answer = await http.get("/v1/models", headers={"Origin": "null"})
        assert answer.headers["access-control-allow-origin"] == "null"


async def test_a_browsers_body_needs_a_type(rig: Rig, http: httpx.AsyncClient) -> None:
    """A body without Content-Type is no JSON when a browser sends it, and text/plain never is."""
    body = json.dumps(ASK).encode()
    for hint in ({"Origin": "http://localhost"}, {"Sec-Fetch-Mode": "no-cors"}, {"Sec-Fetch-Site": "none"}):
        for path in ("/v1/videos", "/v1/explain", "/v1/cache/invalidate", "/v1/cache/warm"):
            error = error_of(await http.post(path, content=body, headers=hint), 400)
            assert error["param"] == "Content-Type"
            for extra in ({}, hint):
                error_of(await http.post(path, content=body, headers={"Content-Type": "text/plain"} | extra), 400)
    assert (await http.post("/v1/explain", content=body)).status_code == 200
    assert rig.renderer.asked == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allowed_hosts", "http://encore.example.com"), ("allowed_hosts", "encore:8000"), ("allowed_hosts", "a.*.b"),
        ("allowed_hosts", "fine, no/good"), ("allowed_origins", "app.example.com"), ("allowed_origins", "null"),
        ("allowed_origins", "https://app.example.com/"), ("allowed_origins", "https://app.example.com/path"),
    ],
)  # fmt: skip
def test_settings_that_name_nothing(name: str, value: str) -> None:
    """A host with a scheme or port, and an origin without or with more, are refused by the setting's name."""
    with pytest.raises(ValueError, match=name):
        Settings.model_validate({name: value})


def test_settings_that_name_something() -> None:
    """Names between commas and blanks."""
    settings = Settings(
        allowed_hosts="encore, *.example.com,*",
        allowed_origins="https://a.example, https://*.b.example:8443 http://[::1]:3",
    )
    assert names(settings.allowed_hosts) == ("encore", "*.example.com", "*")
    assert len(names(settings.allowed_origins)) == 3


async def test_events_of_an_allowed_origin(rig: Rig, client: Client) -> None:
    """Streams pass through CORS as they come."""
    async with client(origins=("https://app.example.com",)) as http:
        job = (await http.post("/v1/videos", json=ASK)).json()
        await until(lambda: bool(rig.renderer.asked))
        headers = {"Origin": "https://app.example.com"}
        async with http.stream("GET", f"/v1/videos/{job['id']}/events", headers=headers) as events:
            assert events.headers["access-control-allow-origin"] == headers["Origin"]
            assert "event: completed" in "".join([text async for text in events.aiter_text()])
