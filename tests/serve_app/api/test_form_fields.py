"""Field by field: what the OpenAI SDK sends as multipart is the request that JSON makes of the same values."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI, Request
from starlette.responses import Response

from serve_app.api.error_responses import register_failures
from serve_app.api.http.body import read_request
from serve_app.schema import VideoRequest
from tests.serve_app.api.uvicorn_server import serving

pytestmark = pytest.mark.filterwarnings("ignore:The Videos API:DeprecationWarning", "ignore:The Sora API")

WRAPPED = "\n".join(base64.encodebytes(bytes(range(200))).decode().splitlines())
VALUES: dict[str, list[Any]] = {
    "prompt": ["a red circle"],
    "negative_prompt": ["blurred", "é 猫"],
    "model": ["native/demo"],
    "seed": [7, 0, "random", None],
    "size": ["64x64", None],
    "width": [64],
    "height": [64],
    "num_frames": [16],
    "seconds": ["4", 2, 1.5],
    "fps": [8],
    "num_inference_steps": [4],
    "guidance_scale": [1, 2.5],
    "quality": [23],
    "correct_typos": [True, False],
    "priority": ["batch"],
    "deadline_seconds": [60, 0.5],
    "tags": [["a", "b"], ["a"], "a,b", None],
    "metadata": [{"shop": "north", "lang": "en"}, None],
    "user": ["user-1"],
    "safety_identifier": ["abc"],
    "n": [1],
    "input_reference": [{"image_url": f"data:image/png;base64,{WRAPPED}"}],
}


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """Serve a server that tells what a request was read as."""
    app = FastAPI()
    app.state.max_body_bytes = 100_000
    register_failures(app)

    @app.post("/v1/videos")
    async def create(request: Request) -> Response:
        return Response((await read_request(request)).model_dump_json(), media_type="application/json")

    async with serving(app) as base:
        yield f"{base}/v1"


async def test_the_sdk_and_json_agree_on_every_field(url: str) -> None:
    """Each field of a request, in each kind of value that it takes."""
    assert VALUES.keys() == VideoRequest.model_fields.keys()
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as sdk, httpx.AsyncClient() as http:
        for name, values in VALUES.items():
            for value in values:
                extra = {} if name == "prompt" else {name: value}
                sent = await sdk.videos.with_raw_response.create(prompt="a red circle", extra_body=extra)
                answer = await http.post(f"{url}/videos", json={"prompt": "a red circle"} | extra)
                assert answer.status_code == 200, answer.text
                told = sent.http_response.json()
                assert told == answer.json(), (name, value)
                if name not in ("prompt", "seconds", "input_reference") and value is not None:
                    assert told[name] not in (None, [], {}), name


async def test_several_videos_are_several_requests(url: str) -> None:
    """`n` beyond one is a 422 that says what to do instead."""
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as sdk:
        with pytest.raises(openai.UnprocessableEntityError, match="a request for each") as refused:
            await sdk.videos.create(prompt="a red circle", extra_body={"n": 2})
    assert refused.value.param == "n"


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {f"k{i}": "v" for i in range(17)}}, {"metadata": {"k" * 65: "v"}}, {"metadata": {"k": "v" * 513}},
        {"metadata": {"k": 1}}, {"metadata": ["k"]}, {"user": "u" * 513}, {"safety_identifier": "s" * 65}, {"n": 0},
    ],
)  # fmt: skip
async def test_what_changes_no_video_is_bounded(url: str, fields: dict[str, Any]) -> None:
    """Metadata as OpenAI bounds it, names of users, and `n`."""
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{url}/videos", json={"prompt": "a red circle"} | fields)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == next(iter(fields))
