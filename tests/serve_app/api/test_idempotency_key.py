"""What headers say of a request being sent again."""

from __future__ import annotations

import httpx
import pytest
from starlette.requests import Request

from serve_app.api.idempotency_key import attempt_of
from serve_app.errors import InvalidRequest
from serve_app.service.jobs.idempotency import FIRST, RequestAttempt
from tests.serve_app.service.rig import Rig

ASK = {"prompt": "a red circle moves left"}


def request(*headers: tuple[str, str]) -> Request:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return Request({"type": "http", "headers": raw})


def test_what_headers_say() -> None:
    """A key is taken as it is; of the SDK's count only whether it is above nought matters, and nonsense is none."""
    assert attempt_of(request()) is FIRST
    assert attempt_of(request(("X-Stainless-Retry-Count", "0"))) is FIRST
    assert attempt_of(request(("x-stainless-retry-count", "2"))) == RequestAttempt(None, True)
    for nonsense in ("", "x", "-1", "1.5", "\u00b2", "000"):
        assert attempt_of(request(("x-stainless-retry-count", nonsense))) is FIRST
    key = '"a b~!'
    assert attempt_of(request(("Idempotency-Key", key), ("x-stainless-retry-count", "1"))) == RequestAttempt(key, True)
    assert attempt_of(request(("Idempotency-Key", "x" * 255))).key == "x" * 255


@pytest.mark.parametrize("keys", [[""], ["x" * 256], ["a\tb"], ["caf\u00e9"], ["a", "a"]])
def test_keys_that_are_none(keys: list[str]) -> None:
    """A key that is empty, too long, not printable ASCII or said twice is refused by name."""
    with pytest.raises(InvalidRequest) as refused:
        attempt_of(request(*(("Idempotency-Key", key) for key in keys)))
    assert (refused.value.param, refused.value.status) == ("Idempotency-Key", 400)


async def test_over_http(rig: Rig, http: httpx.AsyncClient) -> None:
    """Same key: same job, 200; other fields: 422 with its code; a bad key: 400; any form of the body is the same."""
    named = {"Idempotency-Key": "one"}
    first = await http.post("/v1/videos", json=ASK, headers=named)
    again = await http.post("/v1/videos", data=ASK, headers=named)
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json()["id"] == again.json()["id"]
    other = await http.post("/v1/videos", json=ASK | {"seed": 7}, headers=named)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    bad = await http.post("/v1/videos", json=ASK, headers={"Idempotency-Key": "x" * 256})
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "Idempotency-Key")
    assert len((await http.get("/v1/videos")).json()["data"]) == 1


async def test_sync_takes_them_too(http: httpx.AsyncClient) -> None:
    """On the route that makes no job these headers change nothing."""
    headers = {"Idempotency-Key": "one", "x-stainless-retry-count": "1"}
    for seed in (1, 2):
        answer = await http.post("/v1/videos/sync", json=ASK | {"seed": seed}, headers=headers)
        assert (answer.status_code, answer.headers["x-encore-outcome"]) == (200, "rendered")
