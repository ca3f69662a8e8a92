"""Warm-ups over HTTP: begun, looked at, ended, estimated, and every refusal in the OpenAI form."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from serve_app.service.warmup.warmup import MAX_RUNNING
from tests.serve_app.service.rig import TINY, Rig, until

WANTED = {"templates": [{"prompt": "a {color} star", "variables": {"color": ["red", "blue", "Red"]}, **TINY}]}


async def finished(http: httpx.AsyncClient, warm_up_id: str) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while True:
            body: dict[str, Any] = (await http.get(f"/v1/cache/warm/{warm_up_id}")).json()
            if body["status"] != "in_progress":
                return body
            await asyncio.sleep(0.002)


async def test_a_warm_up_from_beginning_to_end(http: httpx.AsyncClient, rig: Rig) -> None:
    """202 with the record, its progress by GET, its end; what it made is a hit."""
    response = await http.post("/v1/cache/warm", json=WANTED)
    begun = response.json()
    assert response.status_code == 202
    assert (begun["object"], begun["total"], begun["duplicates"]) == ("cache.warm_up", 2, 1)
    assert begun["id"].startswith("warm_")
    ended = await finished(http, begun["id"])
    assert ended == begun | {
        "status": "completed", "rendered": 2, "eta_seconds": None, "completed_at": ended["completed_at"]
    }  # fmt: skip
    answer = await http.post("/v1/videos/sync", json={"prompt": "A blue star.", **TINY})
    assert answer.headers["X-Encore-Outcome"] == "l3"
    assert len(rig.renderer.asked) == 2
    assert (await http.get("/v1/stats")).json()["warm_ups"] == {"running": 0}


async def test_a_dry_run_is_an_estimate(http: httpx.AsyncClient, rig: Rig) -> None:
    """200 with counts and keys, nothing rendered and nothing to look at later."""
    response = await http.post("/v1/cache/warm", json=WANTED | {"dry_run": True})
    body = response.json()
    assert response.status_code == 200
    assert len(body.pop("missing_keys")) == 2
    assert body == {
        "object": "cache.warm_up.estimate", "total": 2, "duplicates": 1, "there": 0, "missing": 2, "unknown": 0,
        "seconds_per_render": None, "render_seconds": None,
    }  # fmt: skip
    assert not rig.renderer.asked


async def test_delete_ends_it(http: httpx.AsyncClient, rig: Rig) -> None:
    """DELETE answers with the record, cancelled; again, and of a finished one, with the record as it is."""
    rig.renderer.hold()
    begun = (await http.post("/v1/cache/warm", json=WANTED)).json()
    await until(lambda: bool(rig.renderer.asked))
    ended = await http.delete(f"/v1/cache/warm/{begun['id']}")
    assert (ended.status_code, ended.json()["status"], ended.json()["rendered"]) == (200, "cancelled", 0)
    assert (await http.delete(f"/v1/cache/warm/{begun['id']}")).json() == ended.json()
    assert (await http.get(f"/v1/cache/warm/{begun['id']}")).json() == ended.json()


TEMPLATE = {"prompt": "{a}", "variables": {"a": [str(number) for number in range(200)]}}


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ("[]", 400, "invalid_request", None),
        ("{", 400, "invalid_request", None),
        ({}, 422, "invalid_value", "templates"),
        ({"templates": [{"prompt": "x"}], "prompts": []}, 422, "unknown_field", "prompts"),
        ({"templates": [{"prompt": "x"}], "dry_run": "yes"}, 422, "invalid_value", "dry_run"),
        ({"templates": [{"prompt": "x"}], "ttl": "later"}, 422, "invalid_value", "ttl"),
        ({"templates": [{"prompt": "x", "sede": 1}]}, 422, "unknown_field", "templates[0].sede"),
        ({"templates": [{"prompt": "x", "size": "1x1"}]}, 422, "invalid_value", "templates[0].size"),
        ({"templates": [{"prompt": "x", "size": "64x64", "width": 32, "height": 32}]}, 422, "contradiction",
         "templates[0].size"),
        ({"templates": [{"prompt": "x", "model": "gpt"}]}, 422, "invalid_value", "templates[0].model"),
        ({"templates": [{"prompt": "{a} {b}", "variables": {"a": TEMPLATE["variables"]["a"], "b":  # type: ignore[index]
          TEMPLATE["variables"]["a"]}}]}, 422, "invalid_value", "templates"),  # type: ignore[index]
    ],
)  # fmt: skip
async def test_refusals(http: httpx.AsyncClient, body: object, status: int, code: str, param: str | None) -> None:
    """Each refusal has the OpenAI form, a status, a code, and the place of what is wrong; a dry run's are the same."""
    for extra in ({}, {"dry_run": True}):
        content = body if isinstance(body, str) else json.dumps({**extra, **body})  # type: ignore[dict-item]
        response = await http.post("/v1/cache/warm", content=content, headers={"Content-Type": "application/json"})
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (status, code, param)
        assert error["type"] == "invalid_request_error"


async def test_other_refusals(http: httpx.AsyncClient, rig: Rig) -> None:
    """An unknown id is a 404, another content type a 400, too large a body a 413, too many warm-ups a 429."""
    for call in (http.get, http.delete):
        response = await call("/v1/cache/warm/warm_nobody")
        assert (response.status_code, response.json()["error"]["param"]) == (404, "warm_up_id")
    form = await http.post("/v1/cache/warm", data={"templates": "x"})
    assert (form.status_code, form.json()["error"]["code"]) == (400, "invalid_request")
    large = {"templates": [{"prompt": "{a}", "variables": {"a": ["x" * 500] * 30}}]}
    assert (await http.post("/v1/cache/warm", json=large)).status_code == 413
    rig.renderer.hold()
    for number in range(MAX_RUNNING):
        await http.post("/v1/cache/warm", json={"templates": [{"prompt": f"star {number}"}]})
    response = await http.post("/v1/cache/warm", json=WANTED)
    assert (response.status_code, response.headers["Retry-After"]) == (429, "10")
    assert response.json()["error"]["type"] == "rate_limit_error"


async def test_the_document_says_what_is_taken(http: httpx.AsyncClient) -> None:
    """OpenAPI's schema of the body takes its own example and refuses a field that nobody reads."""
    document = (await http.get("/openapi.json")).json()
    body = document["paths"]["/v1/cache/warm"]["post"]["requestBody"]["content"]["application/json"]
    schema = Draft202012Validator(body["schema"])
    schema.validate(body["example"])
    assert (await http.post("/v1/cache/warm", json=body["example"])).status_code == 202
    for wrong in ({"priority": "batch"}, {"sede": 1}):
        assert not schema.is_valid({"templates": [{"prompt": "x"} | wrong]})
