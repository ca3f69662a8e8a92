"""What a client may invalidate: exactly one choice, refused by name otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.errors import UnknownField, Unprocessable
from serve_app.schema.invalidation import parse_invalidation

KEY = "a" * 64


@pytest.mark.parametrize(
    "fields",
    [
        {"key": KEY}, {"prompt": "p"}, {"prompt": "p", "model": "m"}, {"model": "m"}, {"fingerprint": "f"},
        {"tag": "t"}, {"older_than_seconds": 0}, {"older_than_seconds": "3.5"},
    ],
)  # fmt: skip
def test_one_choice(fields: dict[str, Any]) -> None:
    """Each way to choose is read, a model beside a prompt too, and null is as good as absent."""
    request = parse_invalidation({**dict.fromkeys(("key", "tag"), None), **fields})
    assert {name for name, value in request.model_dump().items() if value is not None} == set(fields)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, None),
        ({"key": KEY, "tag": "t"}, "tag"),
        ({"model": "m", "fingerprint": "f"}, "fingerprint"),
        ({"prompt": "p", "tag": "t"}, "tag"),
        ({"key": KEY.upper()}, "key"),
        ({"key": KEY + "\n"}, "key"),
        ({"tag": "a,b"}, "tag"),
        ({"tag": ""}, "tag"),
        ({"tag": "x" * 65}, "tag"),
        ({"model": ""}, "model"),
        ({"older_than_seconds": -1}, "older_than_seconds"),
        ({"older_than_seconds": True}, "older_than_seconds"),
        ({"older_than_seconds": "nan"}, "older_than_seconds"),
        ({"older_than_seconds": 1e12}, "older_than_seconds"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": 7}, "prompt"),
    ],
)
def test_no_choice_several_and_bad_ones(fields: dict[str, Any], param: str | None) -> None:
    """None, several, and values that nothing can have are refused, naming the field."""
    with pytest.raises(Unprocessable) as refused:
        parse_invalidation(fields)
    assert refused.value.param == param


def test_unknown_fields() -> None:
    """A field nobody reads is refused: it could be a slip that invalidates too much."""
    with pytest.raises(UnknownField) as refused:
        parse_invalidation({"tags": ["t"]})
    assert refused.value.param == "tags"
