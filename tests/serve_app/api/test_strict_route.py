"""What every route refuses: parameters and bodies that it does not read."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from serve_app.api.strict_route import StrictRoute
from tests.serve_app.api.http.test_body import error_of
from tests.serve_app.service.rig import Rig

ROUTES = [
    ("POST", "/v1/videos"), ("POST", "/v1/videos/sync"), ("GET", "/v1/videos"), ("GET", "/v1/videos/x"),
    ("DELETE", "/v1/videos/x"), ("GET", "/v1/videos/x/content"), ("GET", "/v1/videos/x/events"), ("POST",
    "/v1/explain"),
    ("POST", "/invalidate"), ("POST", "/v1/cache/invalidate"), ("POST", "/v1/cache/warm"), ("GET", "/v1/cache/warm/x"),
    ("DELETE", "/v1/cache/warm/x"), ("GET", "/v1/stats"), ("GET", "/v1/models"), ("GET", "/healthz"),
    ("GET", "/v1/models/native/demo"), ("GET", "/readyz"),
]  # fmt: skip


def test_every_route_is_of_the_class(app: FastAPI) -> None:
    """No route can be added that ignores parameters."""
    routes = [route for route in app.router.routes if isinstance(route, APIRoute)]
    ours = [route for route in routes if not route.path.startswith("/docs")]
    told = [route for route in ours if route.include_in_schema]  # the others: HEAD, and what is not supported
    assert len({(route.path, *sorted(route.methods)) for route in told}) == len(ROUTES)
    assert all(isinstance(route, StrictRoute) for route in ours)


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_an_unknown_parameter_is_named(rig: Rig, http: httpx.AsyncClient, method: str, path: str) -> None:
    """`?seed=7` on any route is a 422 that names it, and nothing is rendered, deleted or invalidated."""
    answer = await http.request(method, f"{path}?seed=7&Limit=1", json={"prompt": "p"} if method == "POST" else None)
    error = error_of(answer, 422)
    assert (error["code"], error["param"]) == ("unknown_field", "seed")
    assert "'seed', 'Limit'" in error["message"]
    assert rig.renderer.asked == []


@pytest.mark.parametrize(
    ("query", "status", "param"),
    [
        ("limit=1&limit=2", 422, "limit"), ("limit", 400, None), ("limit=1&", 400, None), ("after=%zz", 400, "after"),
        ("after=%ff", 400, "after"), ("after=" + "x" * 5000, 400, None), ("&".join(["a=1"] * 65), 400, None),
    ],
)  # fmt: skip
async def test_malformed_queries(http: httpx.AsyncClient, query: str, status: int, param: str | None) -> None:
    """A parameter given twice is a 422, a query that cannot be read a 400."""
    assert error_of(await http.get(f"/v1/videos?{query}"), status)["param"] == param


async def test_known_parameters_pass(http: httpx.AsyncClient) -> None:
    """What a route knows it reads."""
    assert (await http.get("/v1/videos?limit=1&order=asc")).status_code == 200
    assert (await http.get("/v1/videos/x/content?variant=thumbnail")).status_code == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/invalidate?key=" + "a" * 64), ("DELETE", "/v1/videos/x"), ("DELETE", "/v1/cache/warm/x"), ("GET",
    "/healthz")],
)  # fmt: skip
async def test_a_body_that_nobody_reads(http: httpx.AsyncClient, method: str, path: str) -> None:
    """A body on a route that reads none is a 400."""
    error_of(await http.request(method, path, json={"seed": 7}), 400)


@pytest.mark.parametrize(
    "path", ["/v1/videos/{}", "/v1/videos/{}/content", "/v1/videos/{}/events", "/v1/cache/warm/{}"]
)
async def test_a_long_id_is_nobody(http: httpx.AsyncClient, path: str) -> None:
    """An id that is longer than any is a 404 at once."""
    error_of(await http.get(path.format("x" * 5000)), 404)
