"""Text in quotation marks: written words stay as they are, names fold their case, nothing else is a quote."""
# ruff: noqa: RUF001 - these tests are about look-alike characters

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core import PromptRules
from serve_app.prompt.prompt import normalise
from serve_app.prompt.quoted import MASK, put_back, taken_out

ON = PromptRules()


@pytest.mark.parametrize(
    ("typed", "canonical"),
    [
        ("A Sign that says 'OPEN Late'", 'a sign that says "OPEN Late"'),
        ("A sign that says “OPEN, Late!!”", 'a sign that says "OPEN, Late!!"'),
        ("A neon 'COLOUR' over the Theatre", 'a neon "COLOUR" over the theater'),
        ("A cat named 'TOM' and a dog called \"Rex\"", 'a cat named "tom" and a dog called "rex"'),
        ("招牌上写着「歡迎光臨。」，旁邊有貓", '招牌上写着"歡迎光臨。",旁边有猫'),
        ("一只名叫“Tom”的猫", '一只名叫"tom"的猫'),
        ("A sign 'DON'T PANIC' here", 'a sign "DON\'T PANIC" here'),
    ],
)
def test_what_is_kept(typed: str, canonical: str) -> None:
    """Case, spelling, script and marks inside quotes stay, the style of the quotes does not."""
    assert normalise(typed, ON) == canonical


@pytest.mark.parametrize(
    "text", ["the cats' house and the dogs' house", "rock 'n' roll", 'a 5" screen and a 7" phone', "it's a dog's life"]
)
def test_what_is_no_quote(text: str) -> None:
    """Apostrophes and inches enclose nothing."""
    assert taken_out(text) == (text, [])


@pytest.mark.parametrize(("one", "other"), [("OPEN", "open"), ("open!", "open"), ("colour", "color"), ("開", "开")])
def test_two_signs_are_two(one: str, other: str) -> None:
    """Other letters on a sign are another video."""
    assert normalise(f'a sign "{one}" at night', ON) != normalise(f'a sign "{other}" at night', ON)


@given(st.text(st.sampled_from(f"aB '\"{MASK}n5猫"), max_size=30))
def test_put_back_undoes_taken_out(text: str) -> None:
    """Whatever was taken out comes back; only the style of single quotes changes."""
    back = put_back(*taken_out(text, fold_names=False))
    assert back.replace('"', "'") == text.replace('"', "'")
