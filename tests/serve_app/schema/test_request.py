"""The wire model alone: strict about names and types, generous about form, never an exception of another kind."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core import Priority, Urgency
from serve_app.errors import UnknownField, Unprocessable
from serve_app.schema import VideoRequest, parse_request
from serve_app.schema.request import DEFAULT_SEED

NUMBERS = (
    "seed", "width", "height", "num_frames", "seconds", "fps", "num_inference_steps", "guidance_scale", "quality",
    "deadline_seconds",
)  # fmt: skip
TEXTS = ("negative_prompt", "model", "size", "priority")
NOT_NUMBERS = (
    True, False, [], {}, [1], {"a": 1}, "", " ", "x", "0x10", "1,5", "nan", "inf", "-inf",
    float("nan"), float("inf"), float("-inf"), "\ud800", "9" * 5000,
)  # fmt: skip
NOT_TEXTS = (True, 1, 1.5, [], {}, ["a"], "\ud800", "a\udfffb")
PROMPT = {"prompt": "a red circle"}


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", NOT_NUMBERS, ids=lambda value: ascii(value)[:12])
def test_not_a_number(field: str, value: Any) -> None:
    """Whatever is no finite number is refused in every numeric field, and the refusal names the field."""
    with pytest.raises(Unprocessable) as refused:
        parse_request({**PROMPT, field: value})
    assert refused.value.param == field
    assert refused.value.status == 422
    assert field in str(refused.value)


@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "model", "priority"])
@pytest.mark.parametrize("value", NOT_TEXTS, ids=ascii)
def test_not_a_text(field: str, value: Any) -> None:
    """Whatever is no Unicode text is refused in every text field."""
    with pytest.raises(Unprocessable) as refused:
        parse_request({**PROMPT, field: value})
    assert refused.value.param == field


@pytest.mark.parametrize("field", ["width", "height", "num_frames", "fps", "num_inference_steps", "seed", "quality"])
def test_fractions_are_not_whole(field: str) -> None:
    """A whole number may be written 16, 16.0, "16" or "16.0", but 16.5 is none."""
    forms = (16, 16.0, "16", "16.0")
    assert {getattr(parse_request({**PROMPT, field: form}), field) for form in forms} == {16}
    for form in (16.5, "16.5"):
        with pytest.raises(Unprocessable):
            parse_request({**PROMPT, field: form})


@pytest.mark.parametrize("fields", [{}, {"prompt": None}, {"seed": 1}])
def test_the_prompt_is_needed(fields: dict[str, Any]) -> None:
    """Without a prompt, or with null for one, the request is refused and the refusal names `prompt`."""
    with pytest.raises(Unprocessable) as refused:
        parse_request(fields)
    assert refused.value.param == "prompt"


@pytest.mark.parametrize("name", ["response_format", "Prompt", "", "cache[mode]", "x" * 1000, "\ud800", "__class__"])
def test_unknown_fields(name: str) -> None:
    """A field nobody reads is refused, not ignored; the answer can be sent as UTF-8 whatever the name was."""
    with pytest.raises(UnknownField) as refused:
        parse_request({**PROMPT, name: 1})
    wire = json.dumps(refused.value.wire(), ensure_ascii=False).encode()
    assert len(wire) < 600
    assert b"num_inference_steps" in wire, "the known fields are told"


@pytest.mark.parametrize("field", [*NUMBERS, *TEXTS])
def test_null_is_absent(field: str) -> None:
    """null in an optional field means the same as leaving it out."""
    assert parse_request({**PROMPT, field: None}) == parse_request(PROMPT)


def test_seed_absent_given_and_random() -> None:
    """Absent is 42, a number is itself, `random` draws a new one each time."""
    assert parse_request(PROMPT).drawn_seed() == DEFAULT_SEED == 42
    assert parse_request({**PROMPT, "seed": 7}).drawn_seed() == 7
    drawn = {parse_request({**PROMPT, "seed": "random"}).drawn_seed() for _ in range(20)}
    assert len(drawn) > 15
    assert all(0 <= seed < 2**31 for seed in drawn)


@pytest.mark.parametrize(
    ("fields", "urgency"),
    [
        ({}, Urgency(Priority.INTERACTIVE)),
        ({"priority": "interactive"}, Urgency(Priority.INTERACTIVE)),
        ({"priority": "batch", "deadline_seconds": "90"}, Urgency(Priority.BATCH, 1090.0)),
        ({"priority": "warm_up"}, Urgency(Priority.WARM_UP)),
        ({"deadline_seconds": 0.5}, Urgency(Priority.INTERACTIVE, 1000.5)),
        ({"deadline_seconds": 86_400}, Urgency(Priority.INTERACTIVE, 87_400.0)),
    ],
)
def test_urgency_is_told_from_now_and_kept_from_then(fields: dict[str, Any], urgency: Urgency) -> None:
    """Absent is interactive without a deadline; seconds from now, also as a form's text, become a time."""
    assert parse_request(PROMPT | fields).urgency(1000.0) == urgency


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("deadline_seconds", 0, "greater than 0"), ("deadline_seconds", "-1", "greater than 0"),
        ("deadline_seconds", 86_400.5, "86400"), ("deadline_seconds", 1e300, "86400"),
        ("priority", "urgent", "'interactive', 'batch' or 'warm_up'"), ("priority", "Batch", "'batch'"),
        ("priority", "", "'batch'"),
    ],
)  # fmt: skip
def test_an_impossible_urgency(field: str, value: Any, said: str) -> None:
    """A deadline that is past or days away, and a priority that there is not, are a 422 that says what is allowed."""
    with pytest.raises(Unprocessable, match=said) as refused:
        parse_request(PROMPT | {field: value})
    assert refused.value.param == field


def test_a_refusal_does_not_repeat_the_value() -> None:
    """What was sent does not come back in the message, so that logs hold no prompt."""
    with pytest.raises(Unprocessable) as refused:
        parse_request({"prompt": ["my secret prompt"], "fps": "secret too"})
    assert "secret" not in str(refused.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
names = st.sampled_from(list(VideoRequest.model_fields)) | st.text(max_size=8)


@given(st.dictionaries(names, json_values, max_size=6))
def test_nothing_but_unprocessable(fields: dict[str, Any]) -> None:
    """Any JSON object is either a request or an Unprocessable that names a field."""
    result: VideoRequest | Unprocessable
    try:
        result = parse_request(fields)
    except Unprocessable as error:
        result = error
    assert isinstance(result, VideoRequest) or result.param is not None


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["spring", "summer"], ("spring", "summer")),
        ("spring, summer,", ("spring", "summer")),
        (["e\u0301t\u00e9"], ("\u00e9t\u00e9",)),
        ([" spring ", "spring"], ("spring",)),
        ([], ()),
        ("", ()),
        (None, None),
    ],
)
def test_tags_have_one_form(given: object, meant: object) -> None:
    """Lists, and strings between commas as forms have them, give the same NFC tags, each once."""
    assert parse_request({"prompt": "p", "tags": given}).tags == meant


@pytest.mark.parametrize(
    "tags", [["x"] * 9, ["x" * 65], [""], ["a,b"], ["a\nb"], ["a\u200bb"], ["\ud800"], [7], 7, {"a": 1}]
)
def test_tags_that_are_none(tags: object) -> None:
    """More than eight, too long, empty, with commas or invisible characters: refused, naming the field."""
    with pytest.raises(Unprocessable) as refused:
        parse_request({"prompt": "p", "tags": tags})
    assert refused.value.param == "tags"


@pytest.mark.parametrize(
    "tags", ["," * 500_000, "a" * 10_000, ["a"] * 9, ["\u0301" * 300_000], [str(n) for n in range(90_000)]],
    ids=["commas", "long", "nine", "marks", "many"],
)  # fmt: skip
def test_tags_are_counted_before_they_are_split(tags: object) -> None:
    """Too many, and what could be none, is refused by its length alone."""
    with pytest.raises(Unprocessable) as raised:
        parse_request({"prompt": "p", "tags": tags})
    assert raised.value.param == "tags"
