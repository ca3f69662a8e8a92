"""A server that speaks Encore's wire over real HTTP, with jobs that follow a script; the other end of client tests."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from serve_app.errors import EncoreError, NotFound

KEY = "ab" * 32
FILE = b"\0\0\0\x18ftypmp42 the film"
PICTURES = {"thumbnail": b"RIFF the middle frame", "spritesheet": b"\xff\xd8 sixteen frames"}


class World:
    """What the server will answer, and every request it got."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything; jobs are found in memory at once."""
        self.requests: list[tuple[str, str, dict[str, str], Any, dict[str, str]]] = []
        self.script: list[dict[str, Any]] = [{"status": "completed", "progress": 100, "cache": found("l1")}]
        self.jobs: list[str] = []
        self.failure: EncoreError | Response | None = None
        self.delay = 0.0

    def job(self, job_id: str) -> dict[str, Any]:
        """Return the job as the next line of the script has it; the last line stays."""
        now = self.script.pop(0) if len(self.script) > 1 else self.script[0]
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
        return world.job("video_1")

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
            "data": [world.job(job_id) for job_id in page],
            "first_id": page[0] if page else None,
            "last_id": page[-1] if page else None,
            "has_more": start + limit < len(ids),
        }

    @app.get("/v1/videos/{video_id}/content")
    async def content(video_id: str, variant: str = "video") -> Response:
        return Response({"video": FILE, **PICTURES}[variant])

    @app.get("/v1/videos/{video_id:path}")
    async def retrieve(video_id: str) -> Any:
        if video_id.startswith("missing"):
            return refusal(NotFound(f"There is no video '{video_id}'.", param="video_id"))
        return world.job(video_id)

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
        config = uvicorn.Config(application(world), ws="none", lifespan="off", log_level="critical")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()
