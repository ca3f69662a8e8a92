"""Header fields: whatever text reaches them, HTTP can carry it and a client reads it back."""

from __future__ import annotations

import re
from urllib.parse import unquote

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.responses import Response

from serve_app.api.http.headers import header_fields, percent
from serve_app.client import replies
from tests.serve_app.service.rig import Rig

PRINTABLE = re.compile(rb"[\x20-\x7e]*")


@given(st.text(), st.text())
@example("d\u0131amond", "a, b=c; d\r\nSet-Cookie: x")
def test_any_text_in_any_field(first: str, second: str) -> None:
    """Every value is printable ASCII in one line, and a text in a list comes back as it was."""
    answer = Response(headers=header_fields({"A": first, "B": f"{percent(first)}={percent(second)}"}))
    values = [value for name, value in answer.raw_headers if name in (b"a", b"b")]
    assert len(values) == 2
    assert all(PRINTABLE.fullmatch(value) for value in values)
    typed, _, read = values[1].decode("ascii").partition("=")
    assert (unquote(typed), unquote(read)) == (first, second)
    assert not {",", ";", " ", "="} & {*typed, *read}


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), max_size=4))
def test_the_client_reads_corrections_back(pairs: list[tuple[str, str]]) -> None:
    """What the server says of corrected words is what the client tells."""
    value = ", ".join(f"{percent(typed)}={percent(read)}" for typed, read in pairs)
    headers = {"X-Encore-Outcome": "rendered", "X-Encore-Key": "k", "X-Encore-Corrected": value}
    assert replies.video(httpx.Response(200, headers=headers)).corrected == tuple(pairs)


@pytest.mark.parametrize(
    "prompt", ["red d\u0131amond", "a red \u017fquare", "a pianno \u0131n paris", "v\u0131deo of a cat"]
)
async def test_letters_that_ignorecase_takes_for_others(rig: Rig, http: httpx.AsyncClient, prompt: str) -> None:
    """Dotless i and long s are letters of their own: answered, and what is corrected is told in ASCII."""
    answer = await http.post("/v1/videos/sync", json={"prompt": prompt})
    assert answer.status_code == 200
    assert answer.headers.get("x-encore-corrected", "").isascii()
    assert len(rig.renderer.asked) == 1
