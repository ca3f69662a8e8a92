"""Both clients and warm-ups: what is sent, and what is read from what the real routes answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from serve_app.client import Encore, WarmEstimate, WarmUp
from serve_app.errors import EncoreError, NotFound
from serve_app.schema.warm_up import WarmEstimate as WireEstimate
from serve_app.schema.warm_up import WarmUpError, WarmUpObject

TEMPLATES = [{"prompt": "a {color} star", "variables": {"color": ["red", "blue"]}, "seed": 7}]
RECORD = WarmUpObject(
    id="warm_1", status="in_progress", created_at=1, completed_at=None, expires_at=9, total=5, duplicates=1, there=1,
    rendered=2, failed=1, eta_seconds=2.5, errors=[WarmUpError(prompt="p", code="render_failed", message="no luck")],
)  # fmt: skip
ESTIMATE = WireEstimate(
    total=5, duplicates=1, there=3, missing=2, unknown=1, seconds_per_render=1.5, render_seconds=3.0,
    missing_keys=["ab" * 32, "cd" * 32],
)  # fmt: skip


@pytest.fixture
def sent() -> list[tuple[str, str, Any]]:
    return []


@pytest.fixture
def encore(connect: Callable[..., Any], sent: list[tuple[str, str, Any]]) -> Any:
    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        sent.append((request.method, request.url.raw_path.decode(), body))
        if request.url.path.endswith("nobody"):
            return httpx.Response(404, json=NotFound("There is no warm-up.", param="warm_up_id").wire())
        if request.url.path.endswith("strange"):
            return httpx.Response(200, json={"id": "warm_1"})
        model = ESTIMATE if body and body.get("dry_run") else RECORD
        return httpx.Response(200, json=model.model_dump())

    return connect("http://encore.test", transport=httpx.MockTransport(answer))


def test_a_warm_up_is_begun_looked_at_and_ended(encore: Encore, sent: list[tuple[str, str, Any]]) -> None:
    """Templates travel as they are; every answer is the record, with the fields it does not know in `extra`."""
    begun = encore.warm(TEMPLATES, ttl="12h")
    assert begun == encore.warm_up("warm_1") == encore.cancel_warm_up("a/b")
    assert begun == WarmUp("warm_1", "in_progress", 5, 1, 1, 2, 1, 2.5, (("p", "render_failed", "no luck"),))
    assert (begun.done, begun.is_final, begun.extra["created_at"]) == (4, False, 1)
    encore.warm(TEMPLATES)
    assert sent == [
        ("POST", "/v1/cache/warm", {"templates": TEMPLATES, "ttl": "12h"}),
        ("GET", "/v1/cache/warm/warm_1", None),
        ("DELETE", "/v1/cache/warm/a%2Fb", None),
        ("POST", "/v1/cache/warm", {"templates": TEMPLATES}),
    ]


def test_an_estimate_is_asked_for(encore: Encore, sent: list[tuple[str, str, Any]]) -> None:
    """The same body with `dry_run`, and the figures as they came."""
    told = encore.warm_estimate(TEMPLATES)
    assert told == WarmEstimate(5, 1, 3, 2, 1, 1.5, 3.0, ("ab" * 32, "cd" * 32))
    assert sent == [("POST", "/v1/cache/warm", {"templates": TEMPLATES, "dry_run": True})]


def test_errors_keep_their_class(encore: Encore) -> None:
    """An unknown id is NotFound; an answer in another form is an error, not half a record."""
    with pytest.raises(NotFound):
        encore.warm_up("nobody")
    with pytest.raises(EncoreError, match="did not answer as an Encore server"):
        encore.warm_up("strange")
