"""The contract of both clients, over real HTTP: what they send, what they return, how they follow a job."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from serve_app import errors
from serve_app.client import AsyncEncore, CacheInfo, Encore, Invalidated, Invalidation, JobError, StageKeys
from serve_app.client.calls import Fields
from serve_app.core import JobStatus, Outcome
from serve_app.schema import VideoRequest
from tests.serve_app.client.wire_server import FILE, KEY, PICTURES, World, found

RENDERING = [
    {"status": "queued", "progress": 0},
    {"status": "in_progress", "progress": 0},
    {"status": "in_progress", "progress": 40},
    {"status": "in_progress", "progress": 40},
    {"status": "in_progress", "progress": 80},
    {"status": "completed", "progress": 100, "cache": found("rendered", "hit")},
]


def test_create_sends_what_was_said_and_nothing_else(encore: Any, world: World) -> None:
    """Proves that fields travel with their types, None is the same as absent, and defaults are the server's."""
    encore.create("A red circle", seed="random", size="128x64", fps=8, guidance_scale=4.5, num_frames=None)
    method, path, query, body, _ = world.requests[0]
    assert (method, path, query) == ("POST", "/v1/videos", {})
    assert body == {"prompt": "A red circle", "seed": "random", "size": "128x64", "fps": 8, "guidance_scale": 4.5}


def test_a_job_is_read_with_all_its_fields(encore: Any, world: World) -> None:
    """Proves the types of a job's fields, and that fields which the client does not know stay readable."""
    world.script = [{"status": "completed", "progress": 100, "cache": found("l2", "miss")}]
    job = encore.retrieve("video_7")
    assert (job.id, job.model, job.status, job.progress) == ("video_7", "native/demo", JobStatus.COMPLETED, 100)
    assert (job.created_at, job.completed_at, job.expires_at) == (1_700_000_000, 1_700_000_009, 1_700_600_000)
    assert (job.prompt, job.seconds, job.size, job.seed) == ("A red circle", 1.5, "128x64", 42)
    assert job.cache == CacheInfo(Outcome.L2, KEY, "miss")
    assert job.error is None
    assert job.extra == {"fps": 16}


def test_a_failed_job_can_be_looked_at(encore: Any, world: World) -> None:
    """Proves that retrieve returns the failure as a value; only generate raises it."""
    world.script = [{"status": "failed", "progress": 30, "error": {"code": "render_failed", "message": "no luck"}}]
    job = encore.retrieve("video_7")
    assert (job.status, job.error, job.cache) == (JobStatus.FAILED, JobError("render_failed", "no luck"), None)


def test_an_unknown_id_is_not_found(encore: Any) -> None:
    """Proves that the server's error comes out as its class, with message and field."""
    with pytest.raises(errors.NotFound, match="no video 'missing_1'") as raised:
        encore.retrieve("missing_1")
    assert raised.value.param == "video_id"


def test_an_id_cannot_leave_its_place_in_the_path(encore: Any, world: World) -> None:
    """Proves that ids are quoted: no id reaches another route or adds a query."""
    encore.retrieve("../models?x=1#y")
    assert world.asked == ["GET /v1/videos/..%2Fmodels%3Fx%3D1%23y"]
    assert world.requests[0][2] == {}


@pytest.mark.parametrize(
    "fields",
    [{"prompt": "broken \ud800"}, {"prompt": "nan", "guidance_scale": float("nan")}, {"prompt": "x", "seed": object()}],
    ids=["surrogate", "nan", "object"],
)
def test_what_cannot_be_sent_is_refused_here(encore: Any, world: World, fields: dict[str, Any]) -> None:
    """Proves that values without a JSON form (a shell's broken bytes are such) are an InvalidRequest."""
    with pytest.raises(errors.InvalidRequest, match="cannot be sent"):
        encore.create(**fields)
    with pytest.raises(errors.InvalidRequest, match="cannot be sent"):
        encore.retrieve("x" * 100_000)
    assert world.requests == []


def test_a_page_is_asked_for_and_read(encore: Any, world: World) -> None:
    """Proves the cursor parameters and the fields of a page."""
    world.jobs = ["a", "b", "c", "d"]
    page = encore.list(after="a", limit=2, order="asc")
    assert world.requests[0][2] == {"after": "a", "limit": "2", "order": "asc"}
    assert ([job.id for job in page.data], page.first_id, page.last_id, page.has_more) == (["b", "c"], "b", "c", True)
    encore.list()
    assert world.requests[1][2] == {}


@pytest.mark.parametrize(("number", "pages"), [(0, 1), (2, 1), (3, 2), (5, 3)])
def test_all_pages_are_walked(encore: Any, world: World, number: int, pages: int) -> None:
    """Proves that every job comes once, in order, with no request more than there are pages."""
    world.jobs = [f"video_{index}" for index in range(number)]
    assert [job.id for job in encore.list_all(limit=2, order="asc")] == world.jobs
    assert len(world.requests) == pages


def test_a_job_is_deleted(encore: Any, world: World) -> None:
    """Proves the exchange of delete."""
    assert encore.delete("video_1") is True
    assert world.asked == ["DELETE /v1/videos/video_1"]


def test_generate_follows_a_job_to_its_file(connect: Callable[..., Any], address: str, world: World) -> None:
    """Proves that progress is told as it changes, polls are apart by the interval, and the file is downloaded."""
    world.script = RENDERING.copy()
    told: list[int] = []
    slept: list[float] = []
    clock = count(100.0, 0.5)
    encore = connect(address, sleep=slept.append, clock=lambda: next(clock))
    made = encore.generate("A red circle", seed=7, on_progress=told.append, poll_interval=0.125)
    assert told == [0, 40, 80, 100]
    assert slept == [0.125] * 5
    assert (made.data, made.outcome, made.key, made.embedding) == (FILE, Outcome.RENDERED, KEY, "hit")
    assert made.seconds == 3.0  # one reading at the start, one before each pause, one at the end
    assert made.job.progress == 100
    polls = ["GET /v1/videos/video_1"] * 5
    assert world.asked == ["POST /v1/videos", *polls, "GET /v1/videos/video_1/content"]
    assert world.requests[0][3] == {"prompt": "A red circle", "seed": 7}


@pytest.mark.parametrize(
    "outage",
    [
        PlainTextResponse("Path '/v1/videos/video_1' not found.", 404),
        HTMLResponse("<h1>502 Bad Gateway</h1>", 502),
        JSONResponse(errors.Unavailable("Starting.").wire(), 503, headers={"Retry-After": "3"}),
    ],
    ids=["a 404 of a proxy's", "502", "503"],
)
def test_an_outage_does_not_end_a_job(
    connect: Callable[..., Any], address: str, world: World, outage: Response
) -> None:
    """Proves that a job that was accepted is asked for again while the server is away, as it says or every second."""
    world.script = RENDERING.copy()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        world.failure = outage if len(slept) in (2, 3) else None

    made = connect(address, sleep=sleep).generate("A red circle", poll_interval=0.125)
    assert made.data == FILE
    pause = float(outage.headers.get("retry-after", 1))
    assert slept == [0.125, 0.125, pause, pause, *[0.125] * 3]


def test_an_outage_that_does_not_end_is_told(connect: Callable[..., Any], address: str, world: World) -> None:
    """Proves that after two minutes of it the outage is raised, and that a job that is gone is told at once."""
    world.script = RENDERING.copy()
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        world.failure = world.failure or PlainTextResponse("", 503)

    with pytest.raises(errors.Unavailable, match="answered 503"):
        connect(address, sleep=sleep, clock=lambda: now[0]).generate("A red circle")
    assert 120 <= now[0] <= 125
    world.reset()
    world.script = RENDERING.copy()
    gone = errors.NotFound("There is no video 'video_1'.")

    def vanish(seconds: float) -> None:
        world.failure = gone

    with pytest.raises(errors.NotFound):
        connect(address, sleep=vanish).generate("A red circle")
    assert world.asked.count("GET /v1/videos/video_1") == 1


def test_a_hit_is_not_waited_for(connect: Callable[..., Any], address: str) -> None:
    """Proves that a job that is completed at once costs no pause."""
    slept: list[float] = []
    made = connect(address, sleep=slept.append).generate("A red circle")
    assert (made.outcome, slept) == (Outcome.L1, [])


def test_generate_really_waits(connect: Callable[..., Any], address: str, world: World) -> None:
    """Proves that the pauses are real without an injected clock or sleep."""
    world.script = RENDERING.copy()
    assert connect(address).generate("A red circle", poll_interval=0.04).seconds >= 5 * 0.04


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": "render_failed", "message": "out of memory"}, errors.RenderFailed),
        ({"code": "render_cancelled", "message": "everybody left"}, errors.RenderCancelled),
        ({"code": "unavailable", "message": "shutting down"}, errors.Unavailable),
        ({"code": "from_the_future", "message": "who knows"}, errors.RenderFailed),
        (None, errors.RenderFailed),
    ],
)
def test_a_failed_job_is_raised(
    encore: Any, world: World, error: dict[str, str] | None, kind: type[errors.EncoreError]
) -> None:
    """Proves that generate raises what the job failed with and does not download; failing is no progress."""
    world.script = [{"status": "queued", "progress": 0}, {"status": "failed", "progress": 30, "error": error}]
    told: list[int] = []
    with pytest.raises(errors.EncoreError, match=error["message"] if error else "without saying why") as raised:
        encore.generate("A red circle", poll_interval=0.0, on_progress=told.append)
    assert type(raised.value) is kind
    assert told == [0]
    assert world.asked[-1] == "GET /v1/videos/video_1"


def test_generate_gives_up_in_the_end(connect: Callable[..., Any], address: str, world: World) -> None:
    """Proves that a job which never ends is left after render_timeout, with its id, so that it can be found again."""
    world.script = [{"status": "in_progress", "progress": 12}]
    clock = count(0.0, 4.0)
    encore = connect(address, render_timeout=10.0, sleep=lambda seconds: None, clock=lambda: next(clock))
    with pytest.raises(errors.Unavailable, match="video_1 is still in_progress at 12 % after 10 s"):
        encore.generate("A red circle")
    assert world.asked.count("GET /v1/videos/video_1") == 2


def test_a_completed_job_must_say_how_it_was_made(encore: Any, world: World) -> None:
    """Proves that an answer which breaks the contract is an error, not a made-up outcome."""
    world.script = [{"status": "completed", "progress": 100, "cache": None}]
    with pytest.raises(errors.EncoreError, match="does not say how"):
        encore.generate("A red circle")


def test_generate_sync_is_one_exchange(connect: Callable[..., Any], address: str, world: World) -> None:
    """Proves that the file comes from the body, how it was made from the headers, and no job is made."""
    clock = count(100.0, 2.5)
    made = connect(address, clock=lambda: next(clock)).generate_sync("A red circle", num_frames=8)
    assert (made.data, made.outcome, made.key, made.embedding) == (FILE, Outcome.RENDERED, KEY, "miss")
    assert (made.seconds, made.job) == (2.5, None)
    assert world.asked == ["POST /v1/videos/sync"]
    assert world.requests[0][3] == {"prompt": "A red circle", "num_frames": 8}


def test_only_renders_may_be_slow(connect: Callable[..., Any], address: str, world: World) -> None:
    """Proves that generate_sync waits for render_timeout where any other call gives up after timeout."""
    world.delay = 0.4
    encore = connect(address, timeout=0.1, render_timeout=30.0)
    assert encore.generate_sync("A red circle").data == FILE
    with pytest.raises(errors.Unavailable, match="did not answer in time"):
        encore.stats()


def test_explain_tells_meaning_keys_and_tiers(encore: Any, world: World) -> None:
    """Proves that the same fields as for a video are sent, and every part of the answer is read."""
    told = encore.explain("A  red circle!!", width=128, height=64)
    assert world.requests[0][3] == {"prompt": "A  red circle!!", "width": 128, "height": 64}
    assert (told.prompt, told.normalised) == ("A  red circle!!", "a red circle")
    assert told.keys == StageKeys("11" * 32, "22" * 32, KEY)
    assert told.tiers == {"l1": False, "l2": True, "l3": None}
    assert told.spec == {"model": "native/demo", "seed": 42}
    assert told.extra == {"changes": [{"rule": "case"}]}


def test_the_small_calls(encore: Any, world: World) -> None:
    """Proves the exchanges of content, invalidate, models, stats and health."""
    assert encore.content("video_1") == FILE
    assert encore.invalidate(KEY) == Invalidated(KEY, ("l2", "l3"))
    assert world.requests[-1][2] == {"key": KEY}
    told = encore.invalidate_where(tag="spring")
    assert told == Invalidation("tag", 1.8e9, 7, {"l1": 2})
    assert world.requests[-1][3] == {"tag": "spring"}
    (model,) = encore.models()
    assert (model.id, model.extra) == ("native/demo", {"created": 0, "family": "native"})
    assert encore.stats() == {"outcomes": {"l1": 3}}
    assert encore.health() is True
    assert world.asked == [
        "GET /v1/videos/video_1/content",
        "POST /invalidate",
        "POST /v1/cache/invalidate",
        "GET /v1/models",
        "GET /v1/stats",
        "GET /healthz",
    ]


def test_pictures_are_asked_for_by_variant(encore: Any, world: World) -> None:
    """Proves that each variant is named on the wire, and that the video itself needs no name."""
    assert encore.content("video_1", variant="thumbnail") == PICTURES["thumbnail"]
    assert encore.content("video_1", variant="spritesheet") == PICTURES["spritesheet"]
    assert encore.content("video_1", variant="video") == FILE
    assert [query for _, _, query, *_ in world.requests] == [
        {"variant": "thumbnail"}, {"variant": "spritesheet"}, {}
    ]  # fmt: skip


def test_urgency_and_quality_are_sent(encore: Any, world: World) -> None:
    """Proves that they travel like any other field."""
    encore.create("A red circle", quality=30, priority="batch", deadline_seconds=1.5)
    assert world.requests[0][3] == {
        "prompt": "A red circle", "quality": 30, "priority": "batch", "deadline_seconds": 1.5
    }  # fmt: skip


def test_the_client_has_every_field_of_a_request() -> None:
    """Proves that a field cannot be added to the wire alone."""
    assert {"prompt", *Fields.__annotations__} == set(VideoRequest.model_fields)


def test_both_clients_have_the_same_methods() -> None:
    """Proves that neither client can gain a method or a parameter alone."""

    def public(kind: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(each).parameters) for name, each in methods if name[0] != "_"}

    assert public(Encore) == public(AsyncEncore)
    assert len(public(Encore)) == 20
    assert inspect.signature(Encore).parameters.keys() == inspect.signature(AsyncEncore).parameters.keys()


async def test_as_a_context_manager_connections_are_closed(address: str) -> None:
    """Proves that leaving the block ends the client of either kind."""
    with Encore(address) as encore:
        assert encore.health()
    async with AsyncEncore(address) as awaited:
        assert await awaited.health()
    with pytest.raises(RuntimeError, match="closed"):
        encore.health()
    with pytest.raises(RuntimeError, match="closed"):
        await awaited.health()
