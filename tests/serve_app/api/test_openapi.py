"""The OpenAPI document and the server agree: schemathesis sends what the document allows and what it does not.

The application runs behind a real HTTP server in this process, over the product's own service and a scripted renderer.
SCHEMATHESIS_CASES sets how many cases each operation gets, positive and negative ones each; by hand, 300 make 10,000.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import requests
import schemathesis
from fastapi import FastAPI
from hypothesis import strategies
from schemathesis import GenerationMode, checks
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serve_app.api.api import build_api
from tests.serve_app.api.conftest import FILM
from tests.serve_app.api.test_strict_route import ROUTES
from tests.serve_app.api.uvicorn_server import serving
from tests.serve_app.service.rig import Rig

CASES = int(os.environ.get("SCHEMATHESIS_CASES", "6"))
CHECKS = [
    checks.not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance,
]  # fmt: skip
OPERATIONS = [("POST", path) for path in ("/v1/videos", "/v1/videos/sync", "/v1/explain", "/invalidate")] + [
    ("POST", "/v1/cache/invalidate"), ("POST", "/v1/cache/warm"), ("GET", "/v1/videos"),
    ("GET", "/v1/videos/{video_id}"), ("DELETE", "/v1/videos/{video_id}"), ("GET", "/v1/videos/{video_id}/content"),
    ("GET", "/v1/videos/{video_id}/events"), ("GET", "/v1/cache/warm/{warm_up_id}"),
    ("DELETE", "/v1/cache/warm/{warm_up_id}"), ("GET", "/v1/stats"), ("GET", "/v1/models"),
    ("GET", "/v1/models/{model_id}"), ("GET", "/healthz"), ("GET", "/readyz"),
]  # fmt: skip


@dataclass
class World:
    """A running server, its document, and ids of things that it has."""

    url: str
    schema: Any
    ids: dict[str, str]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One server for all cases, on an event loop of its own, with a completed job and a warm-up."""
    ready: Future[tuple[str, FastAPI]] = Future()
    end = threading.Event()
    running = threading.Thread(
        target=lambda: asyncio.run(_serve(tmp_path_factory.mktemp("l3"), ready, end)), daemon=True
    )
    running.start()
    url, app = ready.result(60)
    try:
        job = httpx.post(f"{url}/v1/videos", json={"prompt": "a red circle"}).json()
        assert "event: completed" in httpx.get(f"{url}/v1/videos/{job['id']}/events").text
        warm = httpx.post(f"{url}/v1/cache/warm", json={"templates": [{"prompt": "a blue circle"}]}).json()
        ids = {"video_id": job["id"], "warm_up_id": warm["id"], "model_id": app.state.service.planner.card.name}
        yield World(url, schemathesis.openapi.from_dict(app.openapi()), ids)
    finally:
        end.set()
        running.join(60)


async def _serve(folder: Path, ready: Future[tuple[str, FastAPI]], end: threading.Event) -> None:
    rig = Rig(folder)
    rig.renderer.data, rig.renderer.meta = FILM, {"content_type": "video/mp4"}
    app = build_api(rig.service(), max_body_bytes=10_000)
    async with serving(app) as url:
        ready.set_result((url, app))
        await asyncio.to_thread(end.wait)
    await rig.aclose()


def cases(world: World, method: str, path: str, mode: GenerationMode, checked: Callable[[Any, Any], None]) -> None:
    """Send cases of one operation and check the answers; about half of those with an id name what is there."""
    operation = world.schema[path][method]

    @hypothesis.given(data=strategies.data())
    @hypothesis.settings(
        max_examples=CASES, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate],
    )  # fmt: skip
    def run(data: Any) -> None:
        case = data.draw(operation.as_strategy(generation_mode=mode))
        known = next((name for name in world.ids if f"{{{name}}}" in path), None)
        if known is not None and mode is GenerationMode.POSITIVE and data.draw(strategies.booleans()):
            case.path_parameters[known] = world.ids[known]
        checked(case, case.call(base_url=world.url, session=session, timeout=30))

    with requests.Session() as session:
        session.trust_env = False
        run()


def test_every_operation_is_sent(world: World) -> None:
    """The operations here are those of the document, and as many as the routes."""
    document = world.schema.raw_schema["paths"]
    assert {(method, path) for path, each in document.items() for method in map(str.upper, each)} == set(OPERATIONS)
    assert len(OPERATIONS) == len(ROUTES)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_what_the_document_allows(world: World, method: str, path: str) -> None:
    """Requests that the document allows are answered as it says, never by a 5xx, and a body is never malformed."""

    def checked(case: Any, response: Any) -> None:
        case.validate_response(response, checks=CHECKS)
        told = response.json()["error"]["code"] if response.status_code >= 400 else ""
        if told in ("invalid_request", "unknown_field"):
            raise AssertionError(f"{case.as_curl_command()}\n{response.text}")

    cases(world, method, path, GenerationMode.POSITIVE, checked)


@pytest.mark.parametrize(
    ("method", "path"), [each for each in OPERATIONS if each[0] == "POST" or each[1] == "/v1/videos"]
)
def test_what_the_document_refuses(world: World, method: str, path: str) -> None:
    """Requests that the document does not allow are refused, by an error that it has."""

    def checked(case: Any, response: Any) -> None:
        is_refused = response.status_code == 413  # schemathesis does not count it as a refusal
        case.validate_response(response, checks=[*CHECKS, *([] if is_refused else [negative_data_rejection])])

    cases(world, method, path, GenerationMode.NEGATIVE, checked)


def test_a_failure_is_seen(world: World) -> None:
    """An answer that the document does not have is told by the checks above."""
    case = world.schema["/healthz"]["GET"].Case()
    response = case.call(base_url=world.url)
    response.status_code = 418
    with pytest.raises((FailureGroup, AssertionError)):
        case.validate_response(response, checks=CHECKS)
