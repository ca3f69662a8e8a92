"""Templates: what they stand for, how lazily, and what is refused with which place named."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.core import Priority
from serve_app.errors import UnknownField, Unprocessable
from serve_app.schema.templates import DAY, DEFAULT_TTL, MAX_COMBINATIONS, parse_templates, parse_ttl

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True)
LITERALS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.lists(LITERALS | st.integers(-9, 9), min_size=1, max_size=3)


@st.composite
def templates(draw: st.DrawFn) -> dict[str, Any]:
    """A template in which every variable occurs, between literals with any braces."""
    variables = draw(st.dictionaries(NAMES, VALUES, max_size=3))
    places = draw(
        st.permutations([*variables, *draw(st.lists(st.sampled_from(sorted(variables) or [""]), max_size=2))])
    )
    parts = [draw(LITERALS), *itertools.chain(*((name, draw(LITERALS)) for name in places if name))]
    text = "".join(
        f"{{{part}}}" if number % 2 else part.replace("{", "{{").replace("}", "}}") for number, part in enumerate(parts)
    )
    return {"prompt": text, "variables": variables, "parts": parts}


@settings(max_examples=60, deadline=None)
@given(templates())
def test_a_template_stands_for_every_combination_once(made: dict[str, Any]) -> None:
    """As many requests as the product of the lists, each the text with that combination's values, in their order."""
    parts = made.pop("parts")
    parsed = parse_templates([made])
    variables = made["variables"]
    wanted = [
        "".join(
            str(dict(zip(variables, values, strict=True))[part]) if number % 2 else part
            for number, part in enumerate(parts)
        )
        for values in itertools.product(*variables.values())
    ]
    assert [item.request.prompt for item in parsed.items()] == wanted
    assert parsed.combinations == len(wanted) == math.prod(map(len, variables.values()))


def test_a_million_million_combinations_cost_nothing_until_they_are_asked_for() -> None:
    """Counting multiplies, and the first items come at once: nothing is spread out in memory."""
    variables = {name: [f"{name}{number}" for number in range(1000)] for name in "abcd"}
    parsed = parse_templates([{"prompt": "{a} {b} {c} {d}", "variables": variables}])
    assert parsed.combinations == 10**12
    first = [item.request.prompt for item in itertools.islice(parsed.items(), 1001)]
    assert first[:2] == ["a0 b0 c0 d0", "a0 b0 c0 d1"]
    assert first[-1] == "a0 b0 c1 d0"


def test_fixed_fields_go_into_every_request() -> None:
    """Any request field but the urgency may be fixed; the priority is warm_up, and variables reach both texts."""
    parsed = parse_templates(
        [
            {
                "prompt": "a {color} star",
                "negative_prompt": "no {color} {{sky}}",
                "variables": {"color": ["red", "blue"]},
                "size": "32x32",
                "seed": 7,
                "num_inference_steps": 4,
                "ttl": "12h",
            },
            {"prompt": "plain"},
        ],
        ttl="1w",
    )
    items = list(parsed.items())
    assert [(item.template, item.request.prompt, item.ttl) for item in items] == [
        (0, "a red star", DAY / 2), (0, "a blue star", DAY / 2), (1, "plain", 7 * DAY)
    ]  # fmt: skip
    assert [item.request.negative_prompt for item in items] == ["no red {sky}", "no blue {sky}", None]
    assert all(item.request.priority is Priority.WARM_UP for item in items)
    assert (items[0].request.size, items[0].request.seed, items[0].request.num_inference_steps) == ("32x32", 7, 4)
    assert next(parse_templates([{"prompt": "x"}]).items()).ttl == DEFAULT_TTL == 3 * DAY


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("90s", 90), ("90", 90), (90, 90), (1.5, 1.5), ("2m", 120), ("12h", 43_200), ("3d", 259_200), (" 1 w ", 604_800)],
)
def test_lengths_of_time(value: object, seconds: float) -> None:
    """A number is seconds; a unit may follow it."""
    assert parse_ttl(value, "ttl") == seconds


@pytest.mark.parametrize("value", [0, -1, True, "", "3 days", "d", "1e3", float("nan"), "400d", None, [3]])
def test_what_is_no_length_of_time(value: object) -> None:
    """Nothing is guessed: what is not a positive number with a known unit is refused."""
    with pytest.raises(Unprocessable) as raised:
        parse_ttl(value, "templates[0].ttl")
    assert raised.value.param == "templates[0].ttl"


FINE = {"prompt": "fine"}
REFUSED: list[tuple[object, str, str]] = [
    (None, "templates", "a list of at least one"),
    ([], "templates", "a list of at least one"),
    ("a prompt", "templates", "a list of at least one"),
    ([FINE, "text"], "templates[1]", "an object"),
    ([FINE, {}], "templates[1].prompt", "required"),
    ([{"prompt": 5}], "templates[0].prompt", "not valid"),
    ([{"prompt": "x", "color": "red"}], "templates[0].color", "Unknown field"),
    ([{"prompt": "x", "priority": "batch"}], "templates[0].priority", "always has the priority warm_up"),
    ([{"prompt": "x", "deadline_seconds": 5}], "templates[0].deadline_seconds", "no deadline"),
    ([{"prompt": "x", "seed": "random"}], "templates[0].seed", "nobody asks for"),
    ([{"prompt": "x", "fps": "fast"}], "templates[0].fps", "templates[0]: 'fps' is not valid"),
    ([{"prompt": "x", "ttl": "soon"}], "templates[0].ttl", "3d"),
    ([{"prompt": "{shop}"}], "templates[0].prompt", "'{shop}', which is not among its variables"),
    ([{"prompt": "a } b"}], "templates[0].prompt", "a single '}'"),
    ([{"prompt": "x", "variables": {"a": ["1"]}}], "templates[0].variables.a", "in no text"),
    ([{"prompt": "{a}", "variables": ["a"]}], "templates[0].variables", "an object of lists"),
    ([{"prompt": "{a}", "variables": {"a": "b"}}], "templates[0].variables.a", "a list of at least one value"),
    ([{"prompt": "{a}", "variables": {"a": []}}], "templates[0].variables.a", "a list of at least one value"),
    ([{"prompt": "{a}", "variables": {"a": ["b", False]}}], "templates[0].variables.a[1]", "quote it"),
    ([{"prompt": "{a}", "variables": {"a": ["\ud800"]}}], "templates[0].variables.a[0]", "surrogates"),
    ([{"prompt": "{a b}", "variables": {"a b": ["1"]}}], "templates[0].variables", "letters, digits"),
]


@pytest.mark.parametrize(("given_", "param", "told"), REFUSED)
def test_what_is_refused_names_its_place(given_: object, param: str, told: str) -> None:
    """Every refusal is a 422 whose param leads to the place, and says in words what is wrong there."""
    with pytest.raises(Unprocessable) as raised:
        parse_templates(given_)
    assert raised.value.param == param
    assert told in raised.value.message


def test_an_unknown_field_has_its_own_code() -> None:
    """As in any request: a field that nobody reads is told as such."""
    with pytest.raises(UnknownField):
        parse_templates([{"prompt": "x", "sede": 7}])


@pytest.mark.parametrize(
    ("template", "param"),
    [
        ({"prompt": "{a}" * 20_000, "variables": {"a": ["x" * 50_000]}}, "templates[0].prompt"),
        ({"prompt": "{a}" * 30, "variables": {"a": ["x", "x" * 80]}}, "templates[0].prompt"),
        ({"prompt": "p", "negative_prompt": "{a}" * 30, "variables": {"a": ["x" * 80]}},
        "templates[0].negative_prompt"),
        ({"prompt": "{{" * 400_000}, "templates[0].prompt"), ({"prompt": "p", "ttl": [["1"]] * 10}, "templates[0].ttl"),
        ({"prompt": "{a}", "variables": {"a": [float("inf")]}}, "templates[0].variables.a[0]"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_lengths_are_known_before_anything_is_filled_in(template: dict[str, object], param: str) -> None:
    """A text that would be too long with its longest values is refused by its parts alone."""
    with pytest.raises(Unprocessable) as raised:
        parse_templates([template], max_chars=2_000)
    assert raised.value.param == param


@pytest.mark.parametrize("names", [4, 4_000])
def test_combinations_are_counted_before_anything_is_made(names: int) -> None:
    """A hundred million combinations, and more than a number can say, are refused at once with what may be."""
    variables = {f"v{number}": ["1"] * 100 for number in range(names)}
    with pytest.raises(Unprocessable, match="at most 1,000,000") as raised:
        parse_templates([{"prompt": "p", "variables": variables}], max_items=MAX_COMBINATIONS)
    assert raised.value.param == "templates"
