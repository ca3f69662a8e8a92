"""Forms say what JSON says: lists, objects and files in every spelling that clients have for them."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.errors import Unprocessable
from serve_app.schema import VideoRequest
from serve_app.schema.form import FORM_SHAPES, form_fields


@pytest.mark.parametrize(
    ("parts", "fields"),
    [
        ([("tags[]", "a"), ("tags[]", "b")], {"tags": ["a", "b"]}),
        ([("tags", "a"), ("tags", "b")], {"tags": ["a", "b"]}),
        ([("tags[0]", "a"), ("tags[1]", "b")], {"tags": ["a", "b"]}),
        ([("tags", "a,b")], {"tags": "a,b"}),
        ([("metadata[shop]", "north"), ("metadata[lang]", "en")], {"metadata": {"shop": "north", "lang": "en"}}),
        ([("metadata", '{"shop": "north"}')], {"metadata": {"shop": "north"}}),
        ([("input_reference[image_url]", "data:,")], {"input_reference": {"image_url": "data:,"}}),
        ([("input_reference", b"\x89PNG")], {"input_reference": b"\x89PNG"}),
        ([("seed", ""), ("size", ""), ("tags[]", ""), ("input_reference", ""), ("prompt", "p")], {"prompt": "p"}),
        ([("input_reference", b"")], {"input_reference": b""}),
        ([("seed[]", "7")], {"seed[]": "7"}),
    ],
)
def test_spellings(parts: list[tuple[str, str | bytes]], fields: dict[str, Any]) -> None:
    """What JSON nests is put together again; what is empty is absent; what is flat stays flat."""
    assert form_fields(parts) == fields


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ([("seed", "1"), ("seed", "2")], "seed"),
        ([("metadata[a]", "1"), ("metadata[a]", "2")], "metadata[a]"),
        ([("input_reference", b"x"), ("input_reference[image_url]", "data:,")], "input_reference[image_url]"),
        ([("prompt", b"file")], "prompt"),
        ([("metadata", "shop=north")], "metadata"),
    ],
)
def test_refusals(parts: list[tuple[str, str | bytes]], param: str) -> None:
    """What is given twice, a file where none belongs, and an object that is none, are refused by name."""
    with pytest.raises(Unprocessable) as refused:
        form_fields(parts)
    assert refused.value.param == param


def test_the_table_names_fields_that_exist() -> None:
    """Every shape is of a field of the request."""
    assert FORM_SHAPES.keys() <= VideoRequest.model_fields.keys()
