"""An image through every door of the API: files, data: URLs, the unmodified OpenAI SDK, and all that is refused."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from pathlib import Path
from typing import Any

import anyio
import httpx
import httpx2
import openai
import pytest
from fastapi import FastAPI
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from serve_app.api.api import build_api
from serve_app.api.error_responses import register_failures
from serve_app.api.http.body import BodyLimit
from serve_app.model.model import Family
from tests.serve_app.service.image_world import SMALL, family, picture, settings
from tests.serve_app.service.rig import Rig, until

__all__ = ["family", "settings"]  # fixtures

ASK = {"prompt": "a cat in Paris", **SMALL}
PATHS = ("/v1/videos", "/v1/videos/sync", "/v1/explain")
MAX_IMAGE = 20_000


@pytest.fixture
def app(rig: Rig, family: Family) -> FastAPI:
    return build_api(rig.service(family=family), max_body_bytes=2_000, max_image_bytes=MAX_IMAGE)


def url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def told(answer: httpx.Response, status: int) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert answer.status_code == status, error
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def sent(http: httpx.AsyncClient, path: str, image: bytes, name: str = "input_reference") -> httpx.Response:
    return await http.post(path, data=ASK, files={name: ("photo.png", image, "image/png")})


async def test_every_form_is_one_video(rig: Rig, http: httpx.AsyncClient) -> None:
    """A file, a data: URL in JSON, alone or in an object, and in a form as the SDK flattens it: one key, one render."""
    image = picture(1)
    answers = [
        await sent(http, "/v1/videos/sync", image),
        await http.post("/v1/videos/sync", json=ASK | {"input_reference": {"image_url": url(image)}}),
        await http.post("/v1/videos/sync", json=ASK | {"input_reference": url(image)}),
        await http.post("/v1/videos/sync", data=ASK | {"input_reference[image_url]": url(image)}),
        await http.post("/v1/videos/sync", files={**_parts(ASK), "input_reference[image_url]": (None, url(image))}),
    ]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert len({answer.headers["x-encore-key"] for answer in answers}) == 1
    other = await sent(http, "/v1/videos/sync", picture(2))
    assert other.headers["x-encore-outcome"] == "rendered"
    assert len(rig.renderer.asked) == 2


def _parts(fields: dict[str, Any]) -> dict[str, tuple[None, str]]:
    return {name: (None, str(value)) for name, value in fields.items()}


async def test_explain_has_the_image(http: httpx.AsyncClient) -> None:
    """The explanation names the picture's digest; the keys are those of the video that is made."""
    explained = (await sent(http, "/v1/explain", picture(1))).json()
    assert len(explained["spec"]["input_reference"]) == 64
    made = await sent(http, "/v1/videos/sync", picture(1))
    assert made.headers["x-encore-key"] == explained["keys"]["video"]


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The Videos API:DeprecationWarning")
async def test_the_openai_sdk(app: FastAPI, tmp_path: Path) -> None:
    """`videos.create(input_reference=...)` takes a path, an open file and named bytes; `extra_body` a data: URL."""
    assert anyio.Path  # imported on use, and Python 3.11 cannot always compile it that deep in a stack
    (tmp_path / "photo.jpg").write_bytes(photo := picture(3, "JPEG", size=(300, 200)))
    client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app, raise_app_exceptions=False))
    sdk = openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=client, max_retries=0)
    fields: Any = {"prompt": "a cat", "size": "96x64", "extra_body": {"num_frames": 9}}
    async with sdk:
        videos: Any = sdk.videos
        jobs = [
            await videos.create_and_poll(**fields, input_reference=reference, poll_interval_ms=5)
            for reference in (tmp_path / "photo.jpg", io.BytesIO(photo), ("any.name", photo, "text/plain"))
        ]
        more = fields | {"extra_body": {"num_frames": 9, "input_reference": {"image_url": url(photo)}}}
        jobs.append(await videos.create_and_poll(**more, poll_interval_ms=5))
        assert [job.status for job in jobs] == ["completed"] * 4
        assert len({job.model_extra["cache"]["key"] for job in jobs}) == 1
        assert [job.model_extra["cache"]["outcome"] for job in jobs] == ["rendered", "l1", "l1", "l1"]
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            await videos.create(**fields, input_reference=("a.png", b"not a picture"))
        assert (refused.value.code, refused.value.param) == ("invalid_image", "input_reference")


@pytest.mark.parametrize("path", PATHS)
async def test_what_is_refused(rig: Rig, http: httpx.AsyncClient, path: str) -> None:
    """Each refusal has the OpenAI form, its status and the field; nothing is rendered and nothing is fetched."""
    for image in (b"", b"hello", picture(1)[:60], picture(1, "GIF")):
        error = told(await sent(http, path, image), 422)
        assert (error["code"], error["param"]) == ("invalid_image", "input_reference")
    for reference, words in (
        ({"image_url": "http://169.254.169.254/"}, "not fetched"), ({"file_id": "file-7"}, "file_id"), (7, "file"),
        ("https://example.com/a.png", "not fetched"),
    ):  # fmt: skip
        error = told(await http.post(path, json=ASK | {"input_reference": reference}), 422)
        assert words in error["message"]
        assert error["param"] == "input_reference"
    form = await http.post(path, data=ASK | {"input_reference[file_id]": "file-7"})
    assert "file_id" in told(form, 422)["message"]
    twice = await http.post(
        path, data=ASK | {"input_reference": url(picture(1))}, files={"input_reference": ("a.png", picture(1))}
    )
    assert told(twice, 422)["param"] == "input_reference"
    assert told(await sent(http, path, picture(1), "mask"), 422)["param"] == "mask"
    assert rig.renderer.asked == []


@pytest.mark.parametrize("path", PATHS)
async def test_room_for_an_image_is_no_room_for_anything_else(http: httpx.AsyncClient, path: str) -> None:
    """An image may be larger than other bodies; a text may not, and no body is read beyond both together."""
    noise = picture(1, compress_level=0)
    assert 2_000 < len(noise) < MAX_IMAGE
    assert (await sent(http, path, noise)).status_code == 200
    assert (await http.post(path, json=ASK | {"input_reference": url(noise)})).status_code == 200
    long = ASK | {"negative_prompt": "a" * 3_000}
    for answer in (
        await http.post(path, json=long),
        await http.post(path, json=long | {"input_reference": url(noise)}),
        await http.post(path, data=long, files={"input_reference": ("a.png", noise)}),
        await http.post(path, data=long),
        await http.post(path, data=ASK | {"input_reference[image_url]": url(noise)}),  # URL-encoded
        await sent(http, path, noise + bytes(2 * MAX_IMAGE)),
    ):
        assert told(answer, 413)["code"] == "request_too_large"
    other = await http.post("/v1/cache/invalidate", content=json.dumps({"tag": "a" * 3_000}))
    told(other, 413)


async def test_escaped_slashes(http: httpx.AsyncClient) -> None:
    """PHP writes every / of a JSON string as \\/: the same image, with the same room."""
    noise = picture(1, compress_level=0)
    body = json.dumps(ASK | {"input_reference": {"image_url": url(noise)}})
    assert body.count("/") > 1
    kind = {"Content-Type": "application/json"}
    answers = [await http.post("/v1/explain", content=each, headers=kind) for each in (body, body.replace("/", r"\/"))]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json()["keys"] == answers[1].json()["keys"]
    text = {"prompt": "p", "negative_prompt": "data:" + r"\/" * 1_500 + '"' + "a" * 3_000}
    told(await http.post("/v1/explain", content=json.dumps(text), headers=kind), 413)


async def test_bodies_are_bounded_together() -> None:
    """Requests that are being answered hold their images: beyond the bound one more is a 429, later it has room."""
    let_go, waiting = asyncio.Event(), 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal waiting
        await receive()
        waiting += 1
        await let_go.wait()
        await JSONResponse({})(scope, receive, send)

    limited = FastAPI(lifespan=None)
    limited.mount("/", app)
    register_failures(limited)
    limited.add_middleware(BodyLimit, max_body_bytes=1_000, max_image_bytes=3_000)
    transport = httpx.ASGITransport(limited, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        posts = [asyncio.create_task(http.post("/v1/videos/sync", content=bytes(5_000))) for _ in range(32)]
        await until(lambda: waiting == 32)
        refused = await http.post("/v1/videos", content=bytes(1_001))
        assert told(refused, 429)["code"] == "queue_full"
        assert refused.headers["retry-after"] == "5"
        texts = [asyncio.create_task(http.post("/v1/videos", content=bytes(1_000))) for _ in range(3)]
        await until(lambda: waiting == 35)
        let_go.set()
        assert {answer.status_code for answer in await asyncio.gather(*posts, *texts)} == {200}
        assert (await http.post("/v1/videos", content=bytes(5_000))).status_code == 200


async def test_models_say_whether_they_take_one(http: httpx.AsyncClient, rig: Rig) -> None:
    """GET /v1/models tells it; a model of text alone answers 400 whatever the image is."""
    assert (await http.get("/v1/models")).json()["data"][0]["takes_image"] is True
    demo = httpx.ASGITransport(build_api(rig.service(), max_body_bytes=2_000), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=demo, base_url="http://localhost") as client:
        assert (await client.get("/v1/models")).json()["data"][0]["takes_image"] is False
        for path in PATHS:
            for image in (picture(1), b"junk", picture(1, compress_level=0)):
                answer = await client.post(path, data={"prompt": "p"}, files={"input_reference": ("a", image)})
                error = told(answer, 400)
                assert (error["code"], error["param"]) == ("image_not_supported", "input_reference")
    assert rig.renderer.asked == []


async def test_a_warm_up_takes_no_image(http: httpx.AsyncClient) -> None:
    """A template with an image is refused by name."""
    refused = await http.post("/v1/cache/warm", json={"templates": [{"prompt": "p", "input_reference": "data:,"}]})
    assert told(refused, 422)["param"] == "templates[0].input_reference"
