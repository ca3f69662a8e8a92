"""Clients that take long: a body has a time, and slow bodies and readers of events never take every place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from serve_app.api.error_responses import register_failures
from serve_app.api.http.slow_clients import SlowClients
from tests.serve_app.api.uvicorn_server import serving

HEAD = b"POST /v1/videos HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 10\r\n\r\n"
Reader = asyncio.StreamReader


@asynccontextmanager
async def server(**limits: Any) -> AsyncIterator[httpx.AsyncClient]:
    """An application behind the middleware with these limits."""
    app = FastAPI()
    register_failures(app)
    app.add_middleware(SlowClients, **limits)

    @app.post("/v1/videos")
    async def create(request: Request) -> int:
        return len(await request.body())

    @app.get("/v1/videos/{video_id}/events")
    async def events(video_id: str) -> StreamingResponse:
        async def told() -> AsyncIterator[str]:
            yield ": here\n\n"
            await asyncio.sleep(1000)

        return StreamingResponse(told(), media_type="text/event-stream")

    async with serving(app) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client


@asynccontextmanager
async def upload(client: httpx.AsyncClient, *parts: bytes | float) -> AsyncIterator[Reader]:
    """A connection on which these parts were sent, with pauses of so many seconds."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    for part in parts:
        if isinstance(part, bytes):
            writer.write(part)
        else:
            await asyncio.sleep(part)
        if reader.at_eof() or reader._buffer:  # type: ignore[attr-defined]  # it was answered: what follows is not read
            break
    yield reader
    writer.close()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)


@pytest.mark.parametrize(
    ("limits", "parts"),
    [
        ({"idle_timeout": 0.3}, [HEAD]),
        ({"idle_timeout": 0.3}, [HEAD, b"12345"]),
        ({"body_timeout": 0.5}, [HEAD, *[0.1, b"x"] * 9]),
    ],
    ids=["nothing", "half", "dribbled"],
)
async def test_a_body_has_a_time(limits: dict[str, float], parts: list[Any]) -> None:
    """Proves that a body which ceases to come, or comes too slowly, is a 408 in the OpenAI form that names the
    settings, and one that comes in time is read."""
    async with server(**limits) as client:
        async with upload(client, *parts) as reader:
            answer = await asyncio.wait_for(reader.read(), 30)
        assert b"408 Request Timeout" in answer
        assert b'"code":"request_timeout"' in answer
        assert b"client_body_timeout_seconds" in answer
        assert (await client.post("/v1/videos", content=b"x" * 100_000)).json() == 100_000


async def test_slow_bodies_leave_places_to_others() -> None:
    """Proves that beyond its bound a slow body is a 503 with Retry-After, while whole ones are read; and that places
    are given back."""
    async with server(max_slow_bodies=2) as client:
        async with upload(client, HEAD, b"1"), upload(client, HEAD, b"2"):
            async with upload(client, HEAD, 0.2, b"3") as reader:
                answer = await asyncio.wait_for(reader.read(), 30)
            assert b"503 Service Unavailable" in answer
            assert b"retry-after: 5" in answer.lower()
            for _ in range(5):
                assert (await client.post("/v1/videos", content=b"x" * 10)).json() == 10
        async with upload(client, HEAD, b"12345", 0.2, b"67890") as reader:
            assert b"200 OK" in await asyncio.wait_for(reader.read(), 30)


async def test_readers_of_events_leave_places_to_others() -> None:
    """Proves that beyond their bound a reader is a 503 with Retry-After that names the setting, while others are
    answered, and that a reader that leaves makes room."""
    async with server(max_event_streams=2) as client:
        path = "/v1/videos/video_1/events"
        async with client.stream("GET", path) as one, client.stream("GET", path) as two:
            assert one.status_code == two.status_code == 200
            refused = await client.get(path)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert "max_event_streams" in refused.json()["error"]["message"]
            assert (await client.post("/v1/videos", content=b"x")).json() == 1

        async def admitted() -> bool:
            async with client.stream("GET", path) as response:
                return response.status_code == 200

        for _ in range(600):
            if await admitted():
                return
            await asyncio.sleep(0.05)
        pytest.fail("no reader was admitted after the others had left")
