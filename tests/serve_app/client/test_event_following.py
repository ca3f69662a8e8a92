"""Events of a job through both clients, over real HTTP: each once, over connections that break, to the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app import errors
from serve_app.client import JobEvent
from serve_app.client.event_following import TRIES, Follow
from serve_app.core import JobStatus
from tests.serve_app.client.wire_server import World, found

RENDERING = [
    {"status": "queued", "progress": 0},
    *({"status": "in_progress", "progress": percent} for percent in (0, 25, 50, 75)),
    {"status": "completed", "progress": 100, "cache": found("rendered", "hit")},
]
IDS = ["queued.0", "in_progress.0", "in_progress.25", "in_progress.50", "in_progress.75", "completed.100"]


def test_events_are_read_with_all_their_fields(encore: Any, world: World) -> None:
    """Proves the kind of each event, the job in it, step and seconds left, and that reading ends with the job."""
    world.script = list(RENDERING)
    events: list[JobEvent] = list(encore.events("video_1"))
    assert [event.kind for event in events] == ["queued", *["in_progress"] * 4, "completed"]
    assert [event.id for event in events] == IDS
    assert (events[2].step, events[2].total_steps, events[2].eta_seconds) == (25, 100, 7.4)
    assert events[2].job.status is JobStatus.IN_PROGRESS
    assert events[-1].job.cache.embedding == "hit"
    assert world.asked == ["GET /v1/videos/video_1/events"]


@pytest.mark.parametrize("breaks", [[0], [1], [2, 0, 1], [5], [0, 0, 0, 0, 0]])
def test_a_connection_that_breaks_is_opened_again(
    connect: Callable[..., Any], address: str, world: World, breaks: list[int]
) -> None:
    """Proves that each event comes once, that the last id is told, and that the server's pause is kept."""
    world.script, world.breaks = list(RENDERING), list(breaks)
    slept: list[float] = []
    events = list(connect(address, sleep=slept.append).events("video_1"))
    assert [event.id for event in events] == IDS
    assert slept == [0.01] * len(breaks)
    told = [headers.get("last-event-id") for *_, headers in world.requests]
    read = [sum(breaks[:number]) for number in range(len(breaks) + 1)]
    assert told == [IDS[count - 1] if count else None for count in read]


def test_in_the_end_it_gives_up(connect: Callable[..., Any], address: str, world: World) -> None:
    """Proves that a server which never comes to an event is left after a few tries, with what was wrong last."""
    world.script, world.breaks = list(RENDERING), [1] + [0] * 100
    encore = connect(address, sleep=lambda seconds: None)
    with pytest.raises(errors.Unavailable, match=r"broke|stopped"):
        list(encore.events("video_1"))
    assert len(world.requests) == 1 + TRIES


def test_what_is_no_job_is_not_followed(encore: Any, world: World) -> None:
    """Proves that an unknown id is NotFound at once, and a server without events says so at once."""
    with pytest.raises(errors.NotFound, match="missing_1"):
        list(encore.events("missing_1"))
    world.has_events = False
    with pytest.raises(errors.Unavailable, match="no answer of an Encore server"):
        list(encore.events("video_1"))
    assert len(world.requests) == 2


def test_nobody_there(connect: Callable[..., Any]) -> None:
    """Proves that a first connection that fails is not tried again: the caller knows what that is worth."""
    with pytest.raises(errors.Unavailable, match="No Encore server"):
        list(connect("http://127.0.0.1:9", sleep=lambda seconds: None).events("video_1"))


@pytest.mark.parametrize(
    "prompt", ["two\nlines", "a\u2028b\x85c\x0bd", "\u00e9\U0001f600", "data: x\n\nevent: completed"]
)
def test_any_prompt_can_be_told(encore: Any, world: World, prompt: str) -> None:
    """Proves that nothing in a prompt is taken for an end of a line or of an event."""
    world.script = [{**RENDERING[-1], "prompt": prompt}]
    (event,) = encore.events("video_1")
    assert event.job.prompt == prompt


def test_a_key_is_sent(encore: Any, world: World) -> None:
    """Proves that an idempotency key travels as its header, and is no field; without one there is no header."""
    encore.create("A red circle", idempotency_key="mine", seed=7)
    encore.create("A red circle")
    assert [headers.get("idempotency-key") for *_, headers in world.requests] == ["mine", None]
    assert world.requests[0][3] == {"prompt": "A red circle", "seed": 7}


BODY = (
    b'{"id": "video_1", "model": "m", "status": "in_progress", "progress": 5, "created_at": 1, "seconds": "1", '
    b'"size": "8x8", "step": 3, "total_steps": null}'
)


@given(st.lists(st.integers(1, 400), max_size=8), st.sampled_from([b"\n", b"\r\n"]))
def test_it_does_not_matter_how_the_bytes_arrive(cuts: list[int], end: bytes) -> None:
    """Proves that events are the same in whatever pieces they come; unknown events and fields are passed over."""
    lines = [
        b"retry: 2500", b"", b": a comment", b"", b"id:1.3", b"event:in_progress", b"data:" + BODY, b"colour: red", b"",
        b"event: party", b"data: {}", b"", b"event: completed", b"",
    ]  # fmt: skip
    whole = end.join([*lines, b""])
    follow, response = Follow("video_1"), httpx.Response(200, headers={"content-type": "text/event-stream; x"})
    follow.opened(response)
    events: list[JobEvent] = []
    for size in [*cuts, len(whole)]:
        piece, whole = whole[:size], whole[size:]
        events += follow.read(piece, response)
    assert [(event.kind, event.id, event.step, event.total_steps) for event in events] == [
        ("in_progress", "1.3", 3, None)
    ]
    assert not follow.done
    assert follow.pause(None) == 2.5
    assert follow.call().headers["Last-Event-ID"] == "1.3"


def test_an_end_that_was_told_before() -> None:
    """Proves that 204, the answer to the last event's id, ends the reading."""
    follow = Follow("video_1")
    follow.opened(httpx.Response(204))
    assert follow.done
