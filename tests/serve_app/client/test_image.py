"""Images as both clients send them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from serve_app.client.image import data_url
from serve_app.errors import InvalidRequest
from serve_app.schema import parse_request
from tests.serve_app.client.wire_server import World

PNG = b"\x89PNG" + bytes(range(256))


def test_bytes_a_path_and_a_url_are_one(encore: Any, world: World, tmp_path: Path) -> None:
    """Proves that each way to name an image sends the same bytes, in all calls that take fields."""
    path = tmp_path / "photo.png"
    path.write_bytes(PNG)
    spelt = "data:image/png;base64," + base64.b64encode(PNG).decode()
    for image in (PNG, path, str(path), spelt):
        encore.create("p", input_reference=image)
    encore.create("p", input_reference=None)
    bodies = [body for *_, body, _ in world.requests]
    assert [parse_request(body).input_reference for body in bodies] == [PNG] * 4 + [None]
    assert "input_reference" not in bodies[-1]


def test_a_file_that_cannot_be_read_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    """Proves that a wrong path is the caller's InvalidRequest and names the field."""
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(InvalidRequest, match="cannot be read") as refused:
            data_url(path)
        assert refused.value.param == "input_reference"
