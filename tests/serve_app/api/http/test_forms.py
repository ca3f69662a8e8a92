"""Forms are read whole or refused: what is cut, doubled or misspelt is a 400, never a shorter request."""

from __future__ import annotations

import json
from urllib.parse import quote

import httpx
import pytest

from serve_app.api.http.forms import MAX_FIELDS, content_type, multipart_fields, urlencoded_fields
from serve_app.errors import InvalidRequest
from tests.serve_app.api.http.test_body import PATHS, error_of
from tests.serve_app.service.rig import Rig

HEAD = b'Content-Disposition: form-data; name="%s"\r\n\r\n'
WHOLE = (
    b"--x\r\n" + HEAD % b"prompt" + b"a heart\r\n"
    b"--x\r\n" + HEAD % b"seed" + b"77\r\n"
    b'--x\r\nContent-Disposition: form-data; name="input_reference"; filename="C:\\a.png"\r\n'
    b"Content-Type: image/png\r\n\r\n\x89PNG\r\n--\r\n\r\n--x--\r\n"
)  # fmt: skip
KIND = "multipart/form-data; boundary=x"


def test_a_whole_form_is_read() -> None:
    """Texts are text, a file is its bytes, with whatever looks like the end of a line in them."""
    wanted = [("prompt", "a heart"), ("seed", "77"), ("input_reference", b"\x89PNG\r\n--\r\n")]
    assert multipart_fields(WHOLE, "x") == wanted
    assert multipart_fields(WHOLE[:-2], "x") == wanted  # the last line may lack its end
    assert multipart_fields(b"--x--\r\n", "x") == []
    assert urlencoded_fields(b"prompt=a+%C3%A9%3D1&seed=7&size=") == [
        ("prompt", "a \u00e9=1"),
        ("seed", "7"),
        ("size", ""),
    ]
    assert content_type('multipart/Form-Data; Boundary="a b"; charset=UTF-8') == (
        "multipart/form-data", {"boundary": "a b", "charset": "UTF-8"},
    )  # fmt: skip


@pytest.mark.parametrize("end", range(len(WHOLE) - 2))
def test_a_form_cut_anywhere_is_refused(end: int) -> None:
    """Whatever byte is the last that came before the closing boundary, the form is no shorter form."""
    with pytest.raises(InvalidRequest) as raised:
        multipart_fields(WHOLE[:end], "x")
    assert raised.value.status == 400


@pytest.mark.parametrize(
    "body",
    [
        WHOLE + b"more", WHOLE + WHOLE, b"before\r\n" + WHOLE, WHOLE.replace(b"\r\n", b"\n"),
        b"--x\r\n" + HEAD % b"" + b"1\r\n--x--", b'--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--',
        b'--x\r\nContent-Disposition: attachment; name="a"\r\n\r\n1\r\n--x--', b"--x\r\n\r\n1\r\n--x--",
        b'--x\r\nContent-Disposition: form-data; name="a"; name="b"\r\n\r\n1\r\n--x--',
        b'--x\r\nContent-Disposition: form-data; name="a\r\n\r\n1\r\n--x--', b"--xy\r\n" + HEAD % b"a" + b"1\r\n--x--",
        b"--x\r\n" + HEAD % b"a" + b"\xff\r\n--x--", b"--x\r\n" + HEAD % b"\xff" + b"1\r\n--x--",
        b"--x\r\nContent-Type: text/plain; charset=utf-16\r\n" + HEAD % b"a" + b"1\r\n--x--",
        b"--x\r\nContent-Transfer-Encoding: base64\r\n" + HEAD % b"a" + b"MQ==\r\n--x--",
        b"--x\r\n" + (HEAD % b"a")[:-2] + HEAD % b"a" + b"1\r\n--x--",
        b"--x\r\nno colon\r\n" + HEAD % b"a" + b"1\r\n--x--",
        b"--x\r\nA: " + b"b" * 9000 + b"\r\n" + HEAD % b"a" + b"1\r\n--x--",
        b"--x\r\n" + b"".join(b"A%d: b\r\n" % n for n in range(20)) + HEAD % b"a" + b"1\r\n--x--",
        b"".join(b"--x\r\n" + HEAD % (b"n%d" % n) + b"1\r\n" for n in range(MAX_FIELDS + 1)) + b"--x--",
    ],
    ids=lambda body: ascii(body[:60]),
)  # fmt: skip
def test_malformed_multipart(body: bytes) -> None:
    """A form that is not what RFC 7578 says, or has parts nobody can read, is a 400."""
    with pytest.raises(InvalidRequest) as raised:
        multipart_fields(body, "x")
    assert raised.value.status == 400


@pytest.mark.parametrize("shift", range(4))
def test_long_texts_are_undone_in_pieces(shift: int) -> None:
    """Wherever a piece ends, no escape is cut."""
    text = "x" * shift + "\u00e9a" * 20_000
    assert urlencoded_fields(b"a=" + quote(text).encode()) == [("a", text)]


@pytest.mark.parametrize("boundary", ["", "x" * 71, "x ", "x\r\n", "\u00e9"])
def test_bad_boundaries(boundary: str) -> None:
    """A boundary that RFC 2046 does not allow is refused."""
    with pytest.raises(InvalidRequest):
        multipart_fields(b"--" + boundary.encode() + b"--", boundary)


@pytest.mark.parametrize(
    "text",
    [
        b"&", b"a=1&", b"&a=1", b"a=1&&b=2", b"a", b"a=1&b", b"=1", b"a=%", b"a=%4", b"a=%zz", b"a=%u0041", b"a%=1",
        b"a=%ff", b"a=\xff", b"%ff=1", b"a=1&" * 64 + b"a=1",
    ],
    ids=ascii,
)  # fmt: skip
def test_malformed_pairs(text: bytes) -> None:
    """A sign too many, a percent sign without two digits and what is no UTF-8 are a 400."""
    with pytest.raises(InvalidRequest) as raised:
        urlencoded_fields(text)
    assert raised.value.status == 400


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (WHOLE[:90], KIND), (WHOLE + b"x", KIND), (b"prompt=p&seed", "application/x-www-form-urlencoded"),
        (b"prompt=p", "application/x-www-form-urlencoded; charset=latin-1"), (b'{"prompt": "p"', "application/json"),
        (b'{"prompt": "p"}', "application/json; charset=utf-16"), ('{"prompt": "p"}'.encode("utf-16"),
        "application/json"),
        (b'\xef\xbb\xbf{"prompt": "p"}', "application/json"), (b'{"prompt": "p"} x', "application/json"),
        (WHOLE, "multipart/form-data; boundary=x; boundary=y"), (WHOLE, "multipart/form-data; boundary"),
    ],
)  # fmt: skip
async def test_what_is_not_whole_renders_nothing(
    rig: Rig, http: httpx.AsyncClient, path: str, body: bytes, kind: str
) -> None:
    """On every route that takes a video's fields a body that is cut or malformed is a 400 in the OpenAI form."""
    answer = await http.post(path, content=body, headers={"Content-Type": kind})
    assert error_of(answer, 400)["code"] == "invalid_request"
    assert rig.renderer.asked == []


@pytest.mark.parametrize("length", ["5", "500"])
async def test_a_body_is_as_long_as_it_says(http: httpx.AsyncClient, length: str) -> None:
    """More or fewer bytes than Content-Length says are a 400 that names it."""

    async def body() -> object:
        yield b'{"prompt": "p"}'

    headers = {"Content-Type": "application/json", "Content-Length": length}
    answer = await http.post("/v1/explain", content=body(), headers=headers)  # type: ignore[arg-type]
    assert error_of(answer, 400)["param"] == "Content-Length"


async def test_a_client_that_leaves_in_the_middle(rig: Rig, app: object) -> None:
    """A transfer that is cut off is a 400, not a shorter request and not a 500."""
    messages = iter(
        [{"type": "http.request", "body": b'{"prompt": "p"}', "more_body": True}, {"type": "http.disconnect"}]
    )
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        return next(messages)

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/videos", "query_string": b"", "headers": [],
    "root_path": "",
             "http_version": "1.1", "scheme": "http", "server": ("encore", 80), "client": ("encore", 1)}  # fmt: skip
    await app(scope, receive, send)  # type: ignore[operator]
    assert (sent[0]["status"], json.loads(sent[1]["body"])["error"]["code"]) == (400, "invalid_request")  # type: ignore[arg-type]
    assert rig.renderer.asked == []
