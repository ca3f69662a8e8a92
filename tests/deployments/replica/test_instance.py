"""A replica answers only what is meant for its own server, and signs what it answers."""

from __future__ import annotations

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from deployments.replica.instance import HEADER, VARIABLE, InstanceCheck, middlewares, new_instance

asked: list[str] = []


async def jobs(request: Request) -> Response:
    asked.append(request.url.path)
    return PlainTextResponse("jobs")


@pytest.fixture
def client() -> httpx.AsyncClient:
    asked.clear()
    app = InstanceCheck(Starlette(routes=[Route("/v1/videos", jobs)]), "ours")
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://replica")


@pytest.mark.parametrize("headers", [{}, {HEADER: "another"}, {HEADER: ""}])
async def test_what_is_for_another_server_is_refused(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """Proves that a request with another id, or none, is a 421 in the OpenAI form that nothing looked at."""
    answer = await client.get("/v1/videos", headers=headers)
    assert answer.status_code == 421
    assert answer.json()["error"]["code"] == "misdirected_request"
    assert HEADER not in answer.headers
    assert asked == []


async def test_what_is_for_this_one_is_answered_and_signed(client: httpx.AsyncClient) -> None:
    """Proves that our own id opens, and that every answer bears it, a 404 too."""
    for path, status in (("/v1/videos", 200), ("/nothing", 404)):
        answer = await client.get(path, headers={HEADER: "ours"})
        assert (answer.status_code, answer.headers[HEADER]) == (status, "ours")


def test_without_a_launcher_nothing_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that only a server with an id has the check, and that each start has another id."""
    monkeypatch.delenv(VARIABLE, raising=False)
    assert middlewares() == []
    monkeypatch.setenv(VARIABLE, "ours")
    (middleware,) = middlewares()
    assert middleware.cls is InstanceCheck
    assert new_instance() != new_instance()
