"""The forms an image comes in, and those that are refused by name."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from serve_app.core import ModelCard
from serve_app.errors import ImageNotSupported, Unprocessable
from serve_app.model.families import load_family
from serve_app.schema import VideoRequest, parse_request, resolve

DATA = bytes(range(256))
URL = "data:image/png;base64," + base64.b64encode(DATA).decode()


def read(value: Any) -> bytes | None:
    return parse_request({"prompt": "p", "input_reference": value}).input_reference


@pytest.mark.parametrize(
    "value",
    [
        DATA, bytearray(DATA), memoryview(DATA), URL, {"image_url": URL}, URL.replace("image/png", ""),
        {"image_url": URL.replace("image/png", "IMAGE/JPEG;name=a")}, {"image_url": f" {URL}\n"},
        {"image_url": "\r\n".join(URL[i : i + 76] for i in range(0, len(URL), 76))}, URL.rstrip("="),
        {"image_url": URL.replace("+", "%2B").replace("=", "%3D").replace("/", "%2F").replace("image%2F", "image/")},
        URL.replace(";base64,", "; base64, \t"),
    ],
)  # fmt: skip
def test_forms_of_one_file(value: Any) -> None:
    """Bytes, a data: URL, and OpenAI's object around one are the same bytes, whatever type they are said to be."""
    assert read(value) == DATA


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("https://example.com/a.png", "not fetched"),
        ({"image_url": "http://169.254.169.254/latest/meta-data"}, "not fetched"),
        ({"image_url": "file:///etc/passwd"}, "not fetched"),
        ({"image_url": "data:image/png,abc"}, "not fetched"),
        ({"image_url": "data:image/png;base64,!!"}, "not valid base64"),
        ({"image_url": "data:image/png;base64,\u00e9"}, "not valid base64"),
        ({"image_url": "data:image/png;base64,abcde"}, "not valid base64"),
        ({"image_url": "data:image/png;base64,abc=="}, "not valid base64"),
        ({"image_url": "data:image/png;base64,ab=c"}, "not valid base64"),
        ({"image_url": "data:image/png;base64,===="}, "not valid base64"),
        ({"file_id": "file-1"}, "'file_id' is not supported"),
        ({"file_id": "file-1", "image_url": URL}, "'file_id' is not supported"),
        ({"image_url": URL, "detail": "high"}, "'image_url' alone"),
        ({"image_url": 7}, "'image_url' alone"),
        ({}, "'image_url' alone"),
        (7, "should be a file"),
        ([URL], "should be a file"),
        (True, "should be a file"),
    ],
)
def test_what_is_refused(value: Any, why: str) -> None:
    """No URL is fetched, no id is known; each refusal names the field and says what to send."""
    with pytest.raises(Unprocessable, match=why) as refused:
        read(value)
    assert refused.value.param == "input_reference"


def test_absent_is_absent() -> None:
    """A request from text says nothing of images, in no form of it."""
    request = parse_request({"prompt": "p"})
    assert request.input_reference is None
    assert "input_reference" not in json.loads(request.model_dump_json(exclude_none=True))


def test_requests_are_told_apart_by_a_digest() -> None:
    """In JSON, which marks of repeated requests are made of, stands the file's SHA-256; the file is in no `repr`."""
    one, same, other = (VideoRequest(prompt="p", input_reference=each) for each in (DATA, bytes(DATA), DATA[1:]))
    assert one.model_dump_json() == same.model_dump_json() != other.model_dump_json()
    assert len(one.model_dump_json()) < 1000
    assert "\\x01" not in repr(one)


def test_a_model_of_text_alone() -> None:
    """An image for it is a 400 before anybody looks at the image; without one nothing changes."""
    card: ModelCard = load_family("native/demo").card
    assert not card.takes_image
    with pytest.raises(ImageNotSupported, match="text alone") as refused:
        resolve(parse_request({"prompt": "p", "input_reference": b"not even a picture"}), card)
    assert (refused.value.status, refused.value.code) == (400, "image_not_supported")
