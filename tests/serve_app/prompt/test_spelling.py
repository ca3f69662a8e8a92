"""British and American: one spelling for one word, and two for two."""

from __future__ import annotations

import pytest

from serve_app.core import PromptRules
from serve_app.prompt import spelling
from serve_app.prompt.prompt import normalise

ON = PromptRules()


@pytest.mark.parametrize(
    ("british", "american"),
    [
        ("colour", "color"),
        ("colours", "colors"),
        ("coloured", "colored"),
        ("colouring", "coloring"),
        ("grey", "gray"),
        ("greying", "graying"),
        ("theatre", "theater"),
        ("centred", "centered"),
        ("travelling", "traveling"),
        ("jewellery", "jewelry"),
        ("aluminium", "aluminum"),
        ("pyjamas", "pajamas"),
        ("tyres", "tires"),
        ("aeroplanes", "airplanes"),
        ("moustache", "mustache"),
        ("ploughing", "plowing"),
        ("organised", "organized"),
        ("neighbourhood", "neighborhood"),
        ("a grey-haired man", "a gray-haired man"),
        ("the harbour's lights", "the harbor's lights"),
        ("5 metres", "5 meters"),
    ],
)
def test_one_word(british: str, american: str) -> None:
    """Inflected forms and compounds included, the British form is the American one."""
    assert normalise(british, ON) == normalise(american, ON) == american


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a tonne of bricks", "a ton of bricks"),
        ("a groyne", "a groin"),
        ("a philtre", "a filter"),
        ("snowploughs", "snowplow"),
        ("cats", "cat"),
        ("analyses", "analyzes"),
        ("the film", "the movie"),
        ("a sleigh", "a sled"),
        ("a flat", "an apartment"),
    ],
)
def test_two_words(one: str, other: str) -> None:
    """Units, plurals, other words and words with another sense are not spellings."""
    assert normalise(one, ON) != normalise(other, ON)


@pytest.mark.parametrize(
    "word", ["buses", "gauge", "gases", "dialogue", "aesthetic", "glamour", "worshipping", "axe", "disc"]
)
def test_the_model_sees_usual_words(word: str) -> None:
    """Words that Americans write that way are not turned into rare ones."""
    assert normalise(word, ON) == word


def test_case_stays_with_a_model_that_keeps_it() -> None:
    """Under rules that keep case, the American word has the case of the British one; mixed case is a name."""
    keep = PromptRules(fold_case=False)
    assert normalise("Grey COLOUR theatre COLOURlab", keep) == "Gray COLOR theater COLOURlab"


def test_it_can_be_switched_off() -> None:
    """Without the rule words stay as they were typed."""
    assert normalise("grey", PromptRules(spelling=False)) == "grey"


def test_the_table_is_sound() -> None:
    """No target is a source, every word is plain lower case, and no plural becomes a singular."""
    table = spelling.table()
    assert len(table) > 1_600
    assert not table.keys() & set(table.values())
    for british, american in table.items():
        assert (british + american).isascii()
        assert (british + american).isalpha()
        assert british.islower()
        assert british.endswith("s") == american.endswith("s")
        assert british.endswith(("ed", "elt")) == american.endswith("ed")
        assert british.endswith("ing") == american.endswith("ing")
