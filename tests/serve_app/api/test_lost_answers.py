"""The unmodified OpenAI SDK over a connection that breaks: its retry is the same job, whose first answer was lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from fastapi import FastAPI

from tests.serve_app.api.uvicorn_server import serving
from tests.serve_app.service.rig import Rig

pytestmark = pytest.mark.filterwarnings("ignore:The Videos API:DeprecationWarning", "ignore:The Sora API")


class Wire:
    """A relay in front of a server that breaks `breaks` connections just when the answer arrives."""

    def __init__(self, url: str, breaks: int) -> None:
        self._upstream = urlsplit(url)
        self.breaks = breaks
        self.broken = 0

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._upstream.hostname, self._upstream.port)
        going = asyncio.create_task(self._pump(reader, back))
        while data := await there.read(65_536):
            if self.broken < self.breaks:
                self.broken += 1
                break
            writer.write(data)
        going.cancel()
        for end in (back, writer):
            end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)


@asynccontextmanager
async def breaking(app: FastAPI, breaks: int) -> AsyncIterator[tuple[Wire, str]]:
    async with serving(app) as url:
        wire = Wire(url, breaks)
        server = await asyncio.start_server(wire.relay, "127.0.0.1", 0)
        async with server:
            yield wire, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


@pytest.mark.parametrize("breaks", [0, 1, 2])
async def test_one_job_for_all_tries(rig: Rig, app: FastAPI, breaks: int) -> None:
    """However often the answer to `create` is lost, there is one job with one random seed, and it is the SDK's."""
    async with breaking(app, breaks) as (wire, url), openai.AsyncOpenAI(base_url=url, api_key="none") as sdk:
        videos: Any = sdk.videos
        job = await videos.create(prompt="a red circle moves left", extra_body={"seed": "random"})
        assert wire.broken == breaks
        listed = [each.id async for each in videos.list()]
    assert listed == [job.id]
    assert len(rig.renderer.asked) == 1
    assert rig.renderer.requests[0].spec.seed == job.model_extra["seed"]


async def test_without_the_sdks_word_they_are_two(rig: Rig, app: FastAPI) -> None:
    """The same request made twice on purpose is two jobs."""
    async with breaking(app, 0) as (_, url), openai.AsyncOpenAI(base_url=url, api_key="none") as sdk:
        videos: Any = sdk.videos
        jobs = [await videos.create(prompt="a red circle moves left") for _ in range(2)]
    assert jobs[0].id != jobs[1].id
