"""Server-sent events over real HTTP: the form of the stream, its end, coming back to it, and a reader that leaves."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from fastapi import FastAPI

from serve_app.api.api import build_api
from serve_app.core import Progress, RenderEvent, RenderRequest
from serve_app.flight.record import FlightState, FlightStatus
from serve_app.flight.redis_record import RedisFlightRecords
from serve_app.service.jobs import events as events_module
from serve_app.service.jobs.store import ORPHAN_SECONDS
from tests.conftest import ValkeyServer
from tests.serve_app.api.uvicorn_server import serving
from tests.serve_app.service.rig import SECRET, Rig, ask, until

ASK = {"prompt": "a red circle moves left"}


@pytest.fixture
async def wire(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        yield client


async def frames(response: httpx.Response) -> AsyncIterator[dict[str, str]]:
    """Blocks of `field: value` lines, as they come."""
    block: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line:
            name, _, value = line.partition(": ")
            block[name] = value
        else:
            yield block
            block = {}


async def test_the_stream(rig: Rig, wire: httpx.AsyncClient) -> None:
    """The headers, a retry time, each step as one event whose data is the job; after the last one it ends."""
    rig.renderer.hold()
    job = (await wire.post("/v1/videos", json=ASK)).json()
    told: list[dict[str, str]] = []
    async with wire.stream("GET", f"/v1/videos/{job['id']}/events") as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-accel-buffering"] == "no"
        async for frame in frames(response):
            told.append(frame)
            if frame.get("event") == "in_progress":
                rig.renderer.allow(1)
    assert told[0] == {"retry": "1000"}
    states = [(frame["id"], frame["event"]) for frame in told[1:] if frame["event"] != "queued"]
    assert states == [*((f"1.{step}", "in_progress") for step in range(5)), ("2.0", "completed")]
    data = [json.loads(frame["data"]) for frame in told[1:]]
    assert [each["progress"] for each in data[-5:]] == [25, 50, 75, 99, 100]
    assert [each["step"] for each in data[-5:]] == [1, 2, 3, 4, 4]
    now = (await wire.get(f"/v1/videos/{job['id']}")).json()
    assert data[-1] == now | {"step": 4, "total_steps": 4, "eta_seconds": None}


async def test_the_data_is_as_documented(rig: Rig, wire: httpx.AsyncClient) -> None:
    """Every event's data fits the schema that the OpenAPI document gives for the stream."""
    document = (await wire.get("/openapi.json")).json()
    answers = document["paths"]["/v1/videos/{video_id}/events"]["get"]["responses"]
    schema = answers["200"]["content"]["text/event-stream"]["schema"] | {"components": document["components"]}
    job = (await wire.post("/v1/videos", json=ASK)).json()
    async with wire.stream("GET", f"/v1/videos/{job['id']}/events") as response:
        data = [json.loads(frame["data"]) async for frame in frames(response) if "data" in frame]
    for each in data:
        jsonschema.validate(each, schema)
    assert set(data[-1]) == set(schema["properties"])


async def test_coming_back(wire: httpx.AsyncClient) -> None:
    """With the last id only what came after it is told; with the final one the answer is 204, so that browsers stop."""
    job = (await wire.post("/v1/videos", json=ASK)).json()
    path = f"/v1/videos/{job['id']}/events"
    whole = (await wire.get(path)).text
    assert whole.endswith("\n\n")
    later = await wire.get(path, headers={"Last-Event-ID": "1.3"})
    assert [line for line in later.text.splitlines() if line.startswith("id")] == ["id: 2.0"]
    over = await wire.get(path, headers={"Last-Event-ID": "2.0"})
    assert (over.status_code, over.content) == (204, b"")


async def test_refused_before_it_begins(wire: httpx.AsyncClient) -> None:
    """An unknown id is a 404 in the OpenAI form, no stream."""
    answer = await wire.get("/v1/videos/nobody/events")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
    assert answer.json()["error"]["code"] == "not_found"


async def test_a_sign_of_life(rig: Rig, wire: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing happens a comment is sent now and then, which readers pass over."""
    monkeypatch.setattr(events_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(events_module, "IDLE_SECONDS", 0.02)
    rig.renderer.hold()
    job = (await wire.post("/v1/videos", json=ASK)).json()
    async with wire.stream("GET", f"/v1/videos/{job['id']}/events") as response:
        lines = response.aiter_lines()
        comments = 0
        while comments < 3:
            comments += (await anext(lines)).startswith(":")


async def test_a_reader_that_leaves(rig: Rig, app: FastAPI, wire: httpx.AsyncClient) -> None:
    """When the connection is closed, nothing of the stream is left on the server, and the job goes on."""
    rig.renderer.hold()
    job = (await wire.post("/v1/videos", json=ASK)).json()
    tracker = app.state.service.jobs._tracker
    async with wire.stream("GET", f"/v1/videos/{job['id']}/events") as response:
        await anext(frames(response))
        await until(lambda: bool(tracker._watchers))
    await until(lambda: not tracker._watchers)
    assert len(tracker) == 1


class Keeping:
    """A rig's renderer that keeps the flight's record as a Diffusion replica does."""

    def __init__(self, rig: Rig, flights: RedisFlightRecords) -> None:
        self._renderer = rig.renderer
        self._flights = flights

    def __getattr__(self, name: str) -> Any:
        return getattr(self._renderer, name)

    async def render(self, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        assert request.token is not None
        async for event in self._renderer.render(request):
            if isinstance(event, Progress):
                news = FlightStatus(request.token, FlightState.RENDERING, event.step, event.total, "miss")
                await self._flights.beat(request.keys.video, request.token, news)
            yield event


async def test_any_replica_tells_it(tmp_path: Path, valkey_server: ValkeyServer) -> None:
    """Over one Valkey: the job was accepted by one server, another tells every step, and its look shows them too."""
    valkey_server.flush()
    rig = Rig(tmp_path / "l3", valkey_server.url)
    rig.renderer.hold()

    def router() -> Any:
        tier = rig.redis()
        assert tier is not None
        records = RedisFlightRecords(tier, secret=SECRET, linger_seconds=1.0)
        flights.append(records)
        service = rig.service(flights=records, renderer=Keeping(rig, records))
        return build_api(service, max_body_bytes=10_000)

    flights: list[RedisFlightRecords] = []
    async with serving(router()) as one, serving(router()) as two, httpx.AsyncClient() as client:
        job = (await client.post(f"{one}/v1/videos", json=ASK)).json()
        path = f"{two}/v1/videos/{job['id']}"
        ids = []
        async with client.stream("GET", f"{path}/events") as response:
            async for frame in frames(response):
                if "id" not in frame:
                    continue
                ids.append(frame["id"])
                if frame["id"] == "1.2":
                    assert (await client.get(path)).json()["progress"] == 50
                rig.renderer.allow(1)
    assert ids == ["0.0", "1.1", "1.2", "1.3", "1.4", "2.0"]
    assert rig.renderer.asked == [rig.renderer.asked[0]]
    for each in flights:
        await each.aclose()
    await rig.aclose()


async def test_starting_the_server_is_enough(tmp_path: Path, valkey_server: ValkeyServer) -> None:
    """A job whose server was killed is rendered by the next one, which nobody has asked for anything."""
    valkey_server.flush()
    rig = Rig(tmp_path / "l3", valkey_server.url)
    rig.renderer.hold()
    dead = rig.service()
    job = await dead.jobs.submit(ask())
    await dead.jobs._tracker._sweeper.aclose()  # from here on it beats no more, as if it were gone
    rig.clock.now += ORPHAN_SECONDS
    await until(lambda: len(rig.renderer.asked) == 1)
    rig.renderer.asked.clear()
    async with serving(build_api(rig.service(), max_body_bytes=10_000)):
        await until(lambda: rig.renderer.asked == [job.keys.video])
        rig.renderer.allow()
        jobs = rig.jobs()

        async def rendered() -> bool:
            found = await jobs.get(job.id)
            return found is not None and found.status == "completed"

        await until(rendered)
    await rig.aclose()
