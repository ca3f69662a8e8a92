"""Every failure leaves in the OpenAI form, with Retry-After where it may be tried again, and tells no secrets."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from serve_app.api.api import build_api
from serve_app.errors import RenderFailed
from tests.serve_app.api.http.test_body import error_of
from tests.serve_app.service.rig import Rig, until

ASK = {"prompt": "a red circle moves left"}


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/videos/", "/v1/videos/x/y", "/v1/images", "/../etc/passwd", "/%ED%A0%80"]
)
async def test_no_such_route(http: httpx.AsyncClient, path: str) -> None:
    """An unknown path is a 404 in the OpenAI form."""
    answer = await http.get(path, follow_redirects=True)
    if path != "/v1/videos/":  # redirected to the list
        assert error_of(answer, 404)["code"] == "not_found"


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", "/v1/videos"), ("DELETE", "/v1/videos"), ("GET", "/v1/videos/sync/x"), ("POST", "/healthz")],
)
async def test_wrong_method(http: httpx.AsyncClient, method: str, path: str) -> None:
    """A method that a path does not have is a 405 that tells which it has, or a 404 for no path at all."""
    answer = await http.request(method, path)
    error_of(answer, answer.status_code)
    assert answer.status_code in (404, 405)
    assert answer.status_code == 404 or answer.headers["allow"]


async def test_unknown_ids(http: httpx.AsyncClient) -> None:
    """An id that names nothing is a 404 for each route that takes one."""
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
        for job_id in ("x", "video_0", "index", "x" * 5000, "%00", "..%2F..%2Fetc"):
            answer = await http.request(method, f"/v1/videos/{job_id}{path}")
            assert error_of(answer, 404)["type"] == "invalid_request_error"
            assert len(answer.content) < 1000


async def test_busy(rig: Rig, http: httpx.AsyncClient) -> None:
    """With the queue full a new video is a 429 of the rate-limit kind with whole seconds in Retry-After."""
    rig.renderer.hold()
    slow = asyncio.create_task(http.post("/v1/videos/sync", json=ASK))
    await until(lambda: bool(rig.renderer.asked))
    for path in ("/v1/videos", "/v1/videos/sync"):
        answer = await http.post(path, json={"prompt": "another"})
        error = error_of(answer, 429)
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        assert int(answer.headers["retry-after"]) >= 1
    rig.renderer.allow()
    assert (await slow).status_code == 200


async def test_unavailable() -> None:
    """Without any storage a job is a 503 with Retry-After; the sync answer carries the bytes and says unstored."""
    rig = Rig(folder=None)
    transport = httpx.ASGITransport(build_api(rig.service(), max_body_bytes=1000))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        answer = await http.post("/v1/videos", json=ASK)
        error = error_of(answer, 503)
        assert error["code"] == "unavailable"
        assert "ENCORE_REDIS_URL or ENCORE_L3_URL" in error["message"]
        assert int(answer.headers["retry-after"]) >= 1
        sync = await http.post("/v1/videos/sync", json=ASK)
        assert (sync.status_code, sync.headers["x-encore-stored"]) == (200, "false")
        assert sync.headers["cache-status"] == "encore; fwd=miss"


async def test_render_failed(rig: Rig, http: httpx.AsyncClient) -> None:
    """A failed render is a 500 with its code for who waits, and a failed job with the same code for who polls."""
    rig.renderer.failure = RenderFailed("The model failed.")
    assert error_of(await http.post("/v1/videos/sync", json=ASK), 500)["code"] == "render_failed"
    job = (await http.post("/v1/videos", json=ASK)).json()
    async with asyncio.timeout(30):
        while job["status"] != "failed":
            await asyncio.sleep(0.002)
            job = (await http.get(f"/v1/videos/{job['id']}")).json()
    assert job["error"] == {"code": "render_failed", "message": "The model failed."}
    assert "failed" in error_of(await http.get(f"/v1/videos/{job['id']}/content"), 404)["message"]


async def test_unexpected(rig: Rig, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    """A bug is a 500 without a trace or the exception's words; those are in the log."""
    rig.renderer.failure = ValueError("secret at /a/path")
    with caplog.at_level(logging.ERROR):
        answer = await http.post("/v1/videos/sync", json=ASK)
    assert error_of(answer, 500)["code"] == "internal_error"
    assert "secret" not in answer.text
    assert "ValueError" not in answer.text
    assert "secret at /a/path" in caplog.text


async def test_an_unreadable_folder_is_no_failure(http: httpx.AsyncClient, tmp_path: Path, app: FastAPI) -> None:
    """With the store broken a sync request is still answered, marked unstored."""
    objects = tmp_path / "l3" / "objects"
    objects.rmdir()
    objects.write_text("in the way")
    answer = await http.post("/v1/videos/sync", json=ASK)
    assert (answer.status_code, answer.headers["x-encore-stored"]) == (200, "false")
    again = await http.post("/v1/videos/sync", json=ASK)
    assert (again.headers["x-encore-outcome"], again.headers["x-encore-stored"]) == ("l1", "false")
