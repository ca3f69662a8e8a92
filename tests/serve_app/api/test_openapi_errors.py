"""What the OpenAPI document says, value by value: the server takes what the document takes, and refuses the rest."""

from __future__ import annotations

from typing import Any

import httpx
import jsonschema
import pytest
from fastapi import FastAPI

from serve_app.api.idempotency_key import KEY_PATTERN
from serve_app.schema.templates import MAX_TTL
from tests.serve_app.api.http.test_body import error_of
from tests.serve_app.service.rig import Rig

ODD: list[Any] = [
    None, -1, 0, 1, 1.0, 1.5, 16, 64, 65, 1e30, True, False, "", " ", "1", "1.0", " 1", "1 ", "1_0", "+1", "0x1", "-1",
    "nan", "true", "YES", "maybe", "random", "Random", "64x64", "64 x 64", " 64X64 ", "a,b", "a,,b", "\u0000", "a" * 65,
    "a" * 513, [], ["a"], ["a", 1], [None], [""], ["a"] * 9, {}, {"a": "b"}, {"a": 1}, {"a": None}, {"": "b"},
    {"image_url": "http://example.com/a.png"}, "3d", "12h", "1.5m", "native/demo", "interactive",
]  # fmt: skip


def body_of(app: FastAPI, path: str) -> dict[str, Any]:
    schema: dict[str, Any] = app.openapi()["paths"][path]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    return schema


def takes(schema: dict[str, Any], value: Any) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(value)


async def test_every_field_of_a_video(app: FastAPI, http: httpx.AsyncClient) -> None:
    """Each odd value of each field, null too, is in the document exactly when the server does not refuse that field."""
    schema = body_of(app, "/v1/explain")
    differ: list[str] = []
    for name in schema["properties"]:
        for value in ODD:
            if name in ("width", "height", "tags", "prompt", "negative_prompt", "input_reference") and isinstance(
                value, str | list
            ):
                continue  # sides must agree, tags are trimmed, prompts normalised, images decoded
            if isinstance(value, str) and value.strip("0123456789.") == "" and value:
                continue  # the document bounds numbers, not their text
            both = {"width": 64, "height": 64} if name in ("width", "height") else {}
            fields = {"prompt": "p"} | both | {name: value}
            answer = await http.post("/v1/explain", json=fields)
            param = answer.json().get("error", {}).get("param")
            refused = answer.status_code != 200 and param in (name, "size")
            if takes(schema, fields) == refused and not _is_one_side(name, value):
                differ.append(f"{name}={value!r}: in the document {refused}, answered {answer.text[:150]}")
    assert differ == []


def _is_one_side(name: str, value: Any) -> bool:
    """Tell what the document cannot say: a null beside the other side, a time between two frame rates."""
    return (name in ("width", "height") and value is None) or (name in ("seconds", "size") and value is not None)


async def test_a_negative_seed(http: httpx.AsyncClient) -> None:
    """The refusal of -1, by which other servers mean a random seed, names what does it here."""
    for path in ("/v1/videos", "/v1/videos/sync", "/v1/explain"):
        for seed in (-1, "-1", 2**63, 1.5, "Random"):
            error = error_of(await http.post(path, json={"prompt": "p", "seed": seed}), 422)
            assert error["param"] == "seed"
            assert '"random"' in error["message"]


async def test_nulls_and_times_of_warm_ups(app: FastAPI, http: httpx.AsyncClient) -> None:
    """`ttl` and `variables` of templates: null, numbers and texts, as the document has them."""
    schema = body_of(app, "/v1/cache/warm")
    values = [*ODD, 1.23456789, MAX_TTL, MAX_TTL + 1, "366d", "367d", 10**400]
    for value in values:
        if isinstance(value, str) and value in ("367d", "1", "1.0", " 1", "1 "):
            continue  # the document bounds numbers, not their text
        for fields in ({"ttl": value}, {"templates": [{"prompt": "p", "ttl": value}]}):
            body = {"templates": [{"prompt": "p"}], "dry_run": True} | fields
            answer = await http.post("/v1/cache/warm", json=body)
            assert takes(schema, body) == (answer.status_code == 200), (fields, answer.text)
    for variables in (None, {}, {"a": []}, {"a": ["x", 1]}, {"a": "x"}, {"1a": ["x"]}, [], {"a": [None]}):
        body = {"templates": [{"prompt": "{a}" if variables and "a" in variables else "p", "variables": variables}]}
        answer = await http.post("/v1/cache/warm", json=body | {"dry_run": True})
        assert takes(schema, body) == (answer.status_code == 200), (variables, answer.text)


async def test_ways_to_invalidate(app: FastAPI, http: httpx.AsyncClient) -> None:
    """Exactly one way, or a prompt with a model, where null is no way: the document says just that."""
    schema = body_of(app, "/v1/cache/invalidate")
    for body in (
        {}, {"tag": "a"}, {"tag": None}, {"tag": "a", "key": None}, {"tag": "a", "fingerprint": "b"}, {"key": "A" * 64},
        {"key": "a" * 64}, {"key": "a" * 63}, {"prompt": "p", "model": "native/demo"}, {"prompt": None, "model": "m"},
        {"older_than_seconds": 0}, {"older_than_seconds": -1}, {"older_than_seconds": True}, {"tag": "a,b"}, {"x": 1},
        {"older_than_seconds": "1e3"}, {"fingerprint": ""}, {"fingerprint": "f" * 201}, {"tag": "a", "model": "m"},
    ):  # fmt: skip
        answer = await http.post("/v1/cache/invalidate", json=body)
        assert takes(schema, body) == (answer.status_code in (200, 404)), (body, answer.text)


async def test_keys_in_headers_and_queries(app: FastAPI, rig: Rig, http: httpx.AsyncClient) -> None:
    """`Idempotency-Key` and `key` have in the document the pattern that the server checks."""
    operations = app.openapi()["paths"]
    told = {each["name"]: each["schema"] for each in operations["/v1/videos"]["post"]["parameters"]}
    assert told["Idempotency-Key"]["pattern"] == KEY_PATTERN
    for key in ("k", "a b", "~" * 255, "~" * 256, "\x7f", "\u00e9"):
        headers = [(b"Idempotency-Key", key.encode("latin-1"))]
        answer = await http.post("/v1/videos", json={"prompt": "p"}, headers=headers)
        assert takes(told["Idempotency-Key"], key) == (answer.status_code == 200), key
    [key_of] = operations["/invalidate"]["post"]["parameters"]
    for key in ("a" * 64, "A" * 64, "a" * 65, "", "a" * 64 + "\n"):
        answer = await http.post("/invalidate", params={"key": key})
        if not key.endswith("\n"):  # Python's $ is before a last line break too, JSON Schema's is not
            assert takes(key_of["schema"], key) == (answer.status_code == 200), key
        else:
            error_of(answer, 400)


async def test_allow_names_every_method(app: FastAPI, http: httpx.AsyncClient) -> None:
    """A 405 names all methods of its path, HEAD where it is served, and each of them is none itself."""
    expected = {
        "/v1/videos": "GET, POST", "/v1/videos/sync": "POST", "/v1/videos/x": "DELETE, GET",
        "/v1/videos/x/content": "GET, HEAD", "/v1/videos/x/events": "GET", "/v1/explain": "POST",
        "/invalidate": "POST", "/v1/cache/invalidate": "POST", "/v1/cache/warm": "POST",
        "/v1/cache/warm/x": "DELETE, GET", "/v1/stats": "GET", "/v1/models": "GET, HEAD",
        "/v1/models/native/demo": "GET, HEAD", "/healthz": "GET, HEAD", "/readyz": "GET, HEAD",
        "/v1/videos/edits": "POST", "/v1/videos/characters": "GET, POST",
    }  # fmt: skip
    for path, allowed in expected.items():
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
            answer = await http.request(method, path)
            assert (answer.status_code == 405) == (method not in allowed.split(", ")), (method, path)
            if answer.status_code == 405:
                assert answer.headers["allow"] == allowed, (method, path)
                assert method == "HEAD" or error_of(answer, 405)["message"]


def test_statuses_are_documented(app: FastAPI) -> None:
    """Each operation has 405 and 500, those with a body 408, 413 and 415, and content its partial answers."""
    for path, operations in app.openapi()["paths"].items():
        for operation in operations.values():
            assert {"400", "403", "405", "421", "422", "500", "503"} <= operation["responses"].keys(), path
            assert ("requestBody" in operation) == ("415" in operation["responses"]), path
            assert ("requestBody" in operation) == ({"408", "413"} <= operation["responses"].keys()), path
    content = app.openapi()["paths"]["/v1/videos/{video_id}/content"]["get"]["responses"]
    assert {"200", "206", "304", "307", "404", "416"} <= content.keys()
    assert (
        content["206"]["content"].keys()
        == content["200"]["content"].keys()
        == {"video/mp4", "image/webp", "image/jpeg"}
    )


@pytest.mark.parametrize(
    ("headers", "status"), [({}, 200), ({"Range": "bytes=0-9"}, 206), ({"If-None-Match": "*"}, 304),
    ({"Range": "bytes=99999999-"}, 416)],
)  # fmt: skip
async def test_content_answers_as_documented(
    app: FastAPI, http: httpx.AsyncClient, headers: dict[str, str], status: int
) -> None:
    """Each documented success of content is one that the server gives."""
    await http.post("/v1/videos/sync", json={"prompt": "p"})
    job = (await http.post("/v1/videos", json={"prompt": "p"})).json()
    answer = await http.get(f"/v1/videos/{job['id']}/content", headers=headers)
    assert answer.status_code == status
