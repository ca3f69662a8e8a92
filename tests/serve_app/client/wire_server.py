"""A server that speaks Encore's wire over real HTTP, with jobs that follow a script; the other end of client tests."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from serve_app.errors import EncoreError, NotFound

KEY = "ab" * 32
FILE = b"\0\0\0\x18ftypmp42 the film"
PICTURES = {"thumbnail": b"RIFF the middle frame", "spritesheet": b"\xff\xd8 sixteen frames"}


class World:
    """What the server will answer, and every request it got."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything; jobs are found in memory at once.

        breaks: after how many events one stream after the other breaks off; what follows does not. pace: seconds
        between events.
        """
        self.requests: list[tuple[str, str, dict[str, str], Any, dict[str, str]]] = []
        self.script: list[dict[str, Any]] = [{"status": "completed", "progress": 100, "cache": found("l1")}]
        self.jobs: list[str] = []
        self.failure: EncoreError | Response | None = None
        self.delay = 0.0
        self.has_events = True
        self.breaks: list[int] = []
        self.pace = 0.0

    def next_job(self, job_id: str) -> dict[str, Any]:
        """Return the job as the next line of the script has it; the last line stays."""
        return self.job(job_id, self.script.pop(0) if len(self.script) > 1 else self.script[0])

    def job(self, job_id: str, now: dict[str, Any]) -> dict[str, Any]:
        """Return the job as a line of the script has it."""
        return {
            "id": job_id,
            "object": "video",
            "model": "native/demo",
            "created_at": 1_700_000_000,
            "completed_at": 1_700_000_009 if now["status"] == "completed" else None,
            "expires_at": 1_700_600_000,
            "prompt": "A red circle",
            "seconds": "1.5",
            "size": "128x64",
            "seed": 42,
            "error": None,
            "cache": None,
            "fps": 16,
            **now,
        }

    @property
    def asked(self) -> list[str]:
        """The requests so far, as `METHOD path`."""
        return [f"{method} {path}" for method, path, *_ in self.requests]


def found(outcome: str, embedding: str | None = None) -> dict[str, Any]:
    return {"outcome": outcome, "key": KEY, "embedding": embedding}


def refusal(error: EncoreError) -> Response:
    """Return the error as Encore's server sends it."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return JSONResponse(error.wire(), error.status, headers)


async def story(world: World, video_id: str, last_id: str | None) -> AsyncIterator[str]:
    """Tell the script after the line that `last_id` names, an event a line; a last line that is no end lasts."""
    yield "retry: 10\n\n"
    left = world.breaks.pop(0) if world.breaks else None
    ids = [f"{line['status']}.{line['progress']}" for line in world.script]
    start = ids.index(last_id) + 1 if last_id in ids else 0
    for told, (event_id, line) in enumerate(zip(ids[start:], world.script[start:], strict=True)):
        if told == left:
            await asyncio.sleep(0.02)  # so that what was told arrives
            raise ConnectionError("the stream breaks off")
        data = world.job(video_id, line) | {"step": line["progress"], "total_steps": 100, "eta_seconds": 7.4}
        text = json.dumps(data, ensure_ascii=False)
        yield f": so it is\nid: {event_id}\nevent: {line['status']}\ndata: {text}\n\n"
        await asyncio.sleep(world.pace)
    while line["status"] not in ("completed", "failed"):
        yield ": still here\n\n"
        await asyncio.sleep(0.05)


def application(world: World) -> FastAPI:
    app = FastAPI()

    @app.middleware("http")
    async def record(request: Request, handle: Any) -> Response:
        body = await request.json() if await request.body() else None
        path = request.scope["raw_path"].decode()
        world.requests.append((request.method, path, dict(request.query_params), body, dict(request.headers)))
        await asyncio.sleep(world.delay)
        if isinstance(world.failure, EncoreError):
            return refusal(world.failure)
        answer: Response = world.failure or await handle(request)
        return answer

    @app.post("/v1/videos")
    async def create() -> Any:
        return world.next_job("video_1")

    @app.post("/v1/videos/sync")
    async def sync() -> Response:
        headers = {"X-Encore-Outcome": "rendered", "X-Encore-Key": KEY, "X-Encore-Embedding": "miss"}
        return Response(FILE, headers=headers, media_type="video/mp4")

    @app.get("/v1/videos")
    async def videos(after: str | None = None, limit: int = 20, order: str = "desc") -> Any:
        ids = world.jobs if order == "asc" else world.jobs[::-1]
        start = ids.index(after) + 1 if after else 0
        page = ids[start : start + limit]
        return {
            "object": "list",
            "data": [world.next_job(job_id) for job_id in page],
            "first_id": page[0] if page else None,
            "last_id": page[-1] if page else None,
            "has_more": start + limit < len(ids),
        }

    @app.get("/v1/videos/{video_id}/content")
    async def content(video_id: str, variant: str = "video") -> Response:
        return Response({"video": FILE, **PICTURES}[variant])

    @app.get("/v1/videos/{video_id}/events")
    async def events(video_id: str, request: Request) -> Response:
        if not world.has_events:
            return JSONResponse({"detail": "Not Found"}, 404)
        if video_id.startswith("missing"):
            return refusal(NotFound(f"There is no video '{video_id}'.", param="video_id"))
        told = story(world, video_id, request.headers.get("last-event-id"))
        # Said beforehand that it closes, or a client may use the connection again just as it is closed.
        return StreamingResponse(told, headers={"Connection": "close"}, media_type="text/event-stream")

    @app.get("/v1/videos/{video_id:path}")
    async def retrieve(video_id: str) -> Any:
        if video_id.startswith("missing"):
            return refusal(NotFound(f"There is no video '{video_id}'.", param="video_id"))
        return world.next_job(video_id)

    @app.delete("/v1/videos/{video_id}")
    async def delete(video_id: str) -> Any:
        return {"id": video_id, "object": "video.deleted", "deleted": True}

    @app.post("/v1/explain")
    async def explain(request: Request) -> Any:
        return {
            "prompt": (await request.json())["prompt"],
            "normalised": "a red circle",
            "changes": [{"rule": "case"}],
            "spec": {"model": "native/demo", "seed": 42},
            "keys": {"prompt": "11" * 32, "latents": "22" * 32, "video": KEY},
            "tiers": {"l1": False, "l2": True, "l3": None},
        }

    @app.post("/invalidate")
    async def invalidate(key: str) -> Any:
        return {"key": key, "deleted": ["l2", "l3"]}

    @app.post("/v1/cache/invalidate")
    async def invalidate_where(request: Request) -> Any:
        chosen = next(iter(await request.json()))
        return {"rule": {"selector": chosen, "before": 1.8e9}, "epoch": 7, "deleted": {"l1": 2}}

    @app.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [{"id": "native/demo", "object": "model", "created": 0, "family": "native"}]}

    @app.get("/v1/stats")
    async def stats() -> Any:
        return {"outcomes": {"l1": 3}}

    @app.get("/healthz")
    async def healthz() -> Any:
        return {"status": "ok"}

    return app


@contextmanager
def serving(world: World) -> Iterator[str]:
    """Serve `world` on a free loopback port and yield the address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(
            application(world), ws="none", lifespan="off", log_level="critical", timeout_keep_alive=600
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()
