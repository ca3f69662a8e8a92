"""Request bodies: bounded, read in every form, and refused in the OpenAI form when they are none."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.serve_app.service.rig import Rig

LARGE = 20_000
PATHS = ("/v1/videos", "/v1/videos/sync", "/v1/explain")


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Check the OpenAI form, all four fields of it, and return them."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, Any] = answer.json()["error"]
    assert set(answer.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "Traceback" not in answer.text
    return error


async def in_chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1000):
        yield data[start : start + 1000]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nonsense", b"[]", b'"text"', b"null", b"42", b"\xff\xfe\x00", b'{"prompt": "\xff"}', b"[" * 5000,
        b'{"prompt": "p", "seed": ' + b"9" * 5000 + b"}", b'{"prompt": "p"}{}', b'{"prompt": "p", "prompt": "q"}',
    ],
    ids=lambda body: ascii(body[:20]),
)  # fmt: skip
async def test_no_json_object(http: httpx.AsyncClient, path: str, body: bytes) -> None:
    """What is no JSON object, or names a field twice, is a 400."""
    answer = await http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert error_of(answer, 400)["code"] == "invalid_request"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"prompt": "p", "seed": NaN}', "seed"), (b'{"prompt": "p", "seconds": Infinity}', "seconds"),
        (b'{"prompt": "p", "guidance_scale": 1e999}', "guidance_scale"), (b'{"prompt": "\\ud800"}', "prompt"),
        (b'{"prompt": "p", "\\udfff": 1}', "?"), (b'{"prompt": "p", "model": ["m"]}', "model"),
        (b'{"prompt": "p", "seed": 1000000000000000000000000000000}', "seed"), (b'{"prompt": null}', "prompt"),
        (b'{"prompt": "p", "num_frames": true}', "num_frames"), (b"{}", "prompt"), (b'{"prompt": {}}', "prompt"),
        (b'{"prompt": "p", "width": -1, "height": 64}', "size"), (b'{"prompt": "p", "size": "\\ud800"}', "size"),
        (b'{"prompt": "p", "seconds": 0.00001, "num_frames": 8}', "seconds"), (b'{"prompt": " "}', "prompt"),
        (b'{"prompt": "p", "negative_prompt": "a\\udc00"}', "negative_prompt"), (b'{"prompt":"p","":1}', ""),
    ],
    ids=lambda value: ascii(value),
)  # fmt: skip
async def test_bad_values(rig: Rig, http: httpx.AsyncClient, body: bytes, param: str) -> None:
    """A well-formed body with a value that is not allowed is a 422 that names the field; nothing is rendered."""
    for path in PATHS:
        answer = await http.post(path, content=body, headers={"Content-Type": "application/json"})
        assert error_of(answer, 422)["param"] == param
    assert rig.renderer.asked == []


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "image/png", "multipart/mixed", "x" * 3000])
async def test_content_types(http: httpx.AsyncClient, kind: str) -> None:
    """A body of a kind nobody reads is a 400, whatever is in it."""
    error_of(await http.post("/v1/explain", content=b'{"prompt": "p"}', headers={"Content-Type": kind}), 400)


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.x+json", None]
)
async def test_kinds_of_json(http: httpx.AsyncClient, kind: str | None) -> None:
    """JSON is read under all its names, and assumed when none is given."""
    headers = {} if kind is None else {"Content-Type": kind}
    assert (await http.post("/v1/explain", content=b'{"prompt": "p"}', headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "multipart/form-data"), (b"--x\r\nbroken", "multipart/form-data; boundary=x"),
        (b"no boundary here", "multipart/form-data; boundary=x"), (b"--x--", "multipart/form-data; boundary="),
        (b'--x\r\nContent-Disposition: form-data\r\n\r\nno name\r\n--x--\r\n', "multipart/form-data; boundary=x"),
        (b"&".join(b"f%d=1" % number for number in range(100)), "application/x-www-form-urlencoded"),
    ],
)  # fmt: skip
async def test_broken_forms(rig: Rig, http: httpx.AsyncClient, body: bytes, kind: str) -> None:
    """A broken form is a 400 or a 422, never a 500, and nothing is rendered."""
    answer = await http.post("/v1/videos", content=body, headers={"Content-Type": kind})
    error_of(answer, answer.status_code)
    assert answer.status_code in (400, 422)
    assert rig.renderer.asked == []


async def test_form_fields_are_named(http: httpx.AsyncClient) -> None:
    """A file, a field given twice, an unknown and a bracketed field are refused by their names."""
    file = await http.post("/v1/videos", data={"prompt": "p"}, files={"input_reference": ("a.png", b"\x89PNG")})
    assert error_of(file, 400)["param"] == "input_reference"
    other = await http.post("/v1/videos", data={"prompt": "p"}, files={"video": ("a.mp4", b"ftyp")})
    assert error_of(other, 422)["param"] == "video"
    twice = await http.post("/v1/videos", data={"prompt": ["p", "q"]})
    assert error_of(twice, 422)["param"] == "prompt"
    for name in ("response_format", "cache[mode]"):
        assert error_of(await http.post("/v1/videos", data={"prompt": "p", name: "x"}), 422)["code"] == "unknown_field"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x", "text/plain"])
async def test_too_large(http: httpx.AsyncClient, path: str, kind: str) -> None:
    """A body over the limit is a 413 in every form, with its length declared or in chunks."""
    large = json.dumps({"prompt": "a" * LARGE}).encode()
    if kind.startswith("multipart"):
        large = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n' + b"a" * LARGE + b"\r\n--x--\r\n"
    declared = await http.post(path, content=large, headers={"Content-Type": kind})
    assert error_of(declared, 413)["code"] == "request_too_large"
    chunked = await http.post(path, content=in_chunks(large), headers={"Content-Type": kind})
    assert "content-length" not in chunked.request.headers
    error_of(chunked, 400 if kind == "text/plain" else 413)  # of the wrong kind, it is refused unread


@pytest.mark.parametrize("length", ["9" * 30, "9" * 5000, "\u00b2", "-5", "x"])
async def test_odd_lengths(http: httpx.AsyncClient, length: str) -> None:
    """A Content-Length that is no reasonable number is refused, never a 500."""
    headers = [(b"Content-Type", b"application/json"), (b"Content-Length", length.encode("latin-1"))]
    answer = await http.post("/v1/explain", content=in_chunks(b'{"prompt": "p"}'), headers=headers)
    error_of(answer, 413 if length.isdecimal() else 400)


async def test_just_below(http: httpx.AsyncClient) -> None:
    """A body of exactly the limit is read: what is wrong with it is its prompt."""
    body = json.dumps({"prompt": ""}).encode()
    full = body[:-2] + b"a" * (10_000 - len(body)) + body[-2:]
    assert len(full) == 10_000
    error = error_of(await http.post("/v1/explain", content=full, headers={"Content-Type": "application/json"}), 422)
    assert error["param"] == "prompt"
