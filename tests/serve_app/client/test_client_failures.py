"""Answers that are failures: each class of serve_app.errors crosses the wire, and strangers' answers are placed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from serve_app import errors
from serve_app.client import error_mapping
from serve_app.errors import EncoreError
from tests.serve_app.client.wire_server import World


def tree(kind: type[EncoreError] = EncoreError) -> Iterator[type[EncoreError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from tree(child)


KINDS = [kind for kind in tree() if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_the_server_raises_is_what_the_caller_catches(encore: Any, world: World, kind: type[EncoreError]) -> None:
    """Proves for every class of the tree that class, message, field and Retry-After survive HTTP."""
    world.failure = kind("It did not work.", param="seed", retry_after=7)
    with pytest.raises(EncoreError) as raised:
        encore.create("A red circle")
    error = raised.value
    assert type(error) is kind
    assert (error.message, error.param, error.retry_after) == ("It did not work.", "seed", 7)


def openai(code: str | None) -> dict[str, Any]:
    return {"error": {"message": "So it is.", "type": "whatever", "param": None, "code": code}}


@pytest.mark.parametrize(
    ("answer", "kind", "told"),
    [
        (JSONResponse(openai("from_the_future"), 422), errors.Unprocessable, "So it is."),
        (JSONResponse(openai("not_found"), 503), errors.Unavailable, "So it is."),
        (JSONResponse(openai(None), 418), errors.InvalidRequest, "So it is."),
        (
            JSONResponse({"detail": "Not Found"}, 404),
            errors.Unavailable,
            "answered 404: .*Not Found.*no answer",
        ),
        (PlainTextResponse("Path '/' not found.", 404), errors.Unavailable, "no answer of an Encore server"),
        (JSONResponse(openai("no_such_route"), 404), errors.Unavailable, "no answer of an Encore server"),
        (JSONResponse(openai("content_gone"), 404), errors.ContentGone, "So it is."),
        (JSONResponse({"error": "text"}, 400), errors.InvalidRequest, "answered 400"),
        (JSONResponse(["list"], 413), errors.TooLarge, "answered 413"),
        (HTMLResponse("<h1>503 Service Unavailable</h1>", 503), errors.Unavailable, "answered 503: <h1>503"),
        (HTMLResponse("<h1>bad gateway</h1>", 502), errors.Unavailable, "answered 502"),
        (PlainTextResponse("", 504), errors.Unavailable, "answered 504"),
        (Response(b"\xff\xfe\xfa", 500), errors.EncoreError, "answered 500"),
        (PlainTextResponse("x" * 10_000, 500), errors.EncoreError, "answered 500: x{200}$"),
        (Response(status_code=302, headers={"Location": "https://login.example"}), errors.InvalidRequest, "302"),
        (PlainTextResponse("hello"), errors.EncoreError, "did not answer as an Encore server"),
        (JSONResponse({}), errors.EncoreError, "did not answer as an Encore server"),
        (JSONResponse(None), errors.EncoreError, "did not answer as an Encore server"),
        (JSONResponse({"status": "napping"}), errors.EncoreError, "did not answer as an Encore server"),
    ],
)
def test_strangers_answers_are_placed(
    encore: Any, world: World, answer: Response, kind: type[EncoreError], told: str
) -> None:
    """Proves that whatever comes back is an EncoreError of the nearest class with a message that helps."""
    world.failure = answer
    with pytest.raises(EncoreError, match=told) as raised:
        encore.create("A red circle")
    assert type(raised.value) is kind


@pytest.mark.parametrize("answer", [JSONResponse([]), JSONResponse("text"), Response(b"\x80")])
@pytest.mark.parametrize("call", ["list", "models", "health", "stats"])
def test_no_foreign_exception_escapes_a_reader(encore: Any, world: World, answer: Response, call: str) -> None:
    """Proves that each way of reading an answer maps one of another form."""
    world.failure = answer
    with pytest.raises(EncoreError, match="did not answer as an Encore server"):
        getattr(encore, call)()


def test_a_file_without_its_headers_is_no_video(encore: Any, world: World) -> None:
    """Proves that a page which some other server returns for any path is not taken for an MP4."""
    world.failure = HTMLResponse("<h1>welcome</h1>")
    with pytest.raises(EncoreError, match="did not answer as an Encore server"):
        encore.generate_sync("A red circle")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("30", 30), ("0", 0), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("-1", None), ("1.5", None), ("", None)],
)
def test_retry_after_is_whole_seconds_or_nothing(value: str, seconds: int | None) -> None:
    """Proves that a date or nonsense in Retry-After is no exception."""
    request = httpx.Request("GET", "http://127.0.0.1/")
    response = httpx.Response(429, headers={"Retry-After": value}, json=openai("queue_full"), request=request)
    error = error_mapping.of_response(response)
    assert (type(error), error.retry_after) == (errors.Busy, seconds)
