"""Compatibility characters: another way to type a text folds, what says something by its form stays."""
# ruff: noqa: RUF001 - these tests are about look-alike characters

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core import PromptRules
from serve_app.prompt import compatibility, folding
from serve_app.prompt.prompt import normalise, trace

FORM = PromptRules(traditional_to_simplified=False, spelling=False, wrappers=False, typos=False)
TABLE = Path(__file__).parents[3] / "docs" / "prompt-normalisation.md"
COMPATIBILITY = [chr(code) for code in range(0x110000) if unicodedata.decomposition(chr(code)).startswith("<")]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("10⁻³", "10-3"), ("10²", "102"), ("10²³", "10²3"), ("x₁₂", "x₁2"), ("10₂", "102"), ("x₋₁", "x-1"),
        ("Maße", "Masse"), ("STRAẞE", "STRASSE"), ("ᾳ", "αι"), ("ısı", "isi"), ("İ", "I"), ("résumé", "resume"),
        ("①", "1"), ("㊙", "秘"), ("Ⓐ", "A"), ("🄰", "A"), ("™", "TM"), ("1ª", "1a"), ("ℝ", "R"), ("ℵ", "א"),
        ("№ cats", "no cats"), ("ㄱㅏ", "가"), ("¨", "\u0308"), ("ℏ", "ħ"), ("٣", "3"), ("1½", "11/2"),
        ("2^½", "2^1/2"), ("x㎏", "xkg"), ("⒈5", "1.5"), ("👨‍👩‍👧", "👨👩👧"), ("🇩🇪", "DE"),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u062e"),
    ],
)  # fmt: skip
def test_what_means_something_else_has_another_key(one: str, other: str) -> None:
    """Raised, lowered, encircled, boxed, double-struck, accented, of another script: none is the plain text."""
    for form in ("{}", "a sign with {} on it", "{}, at night"):
        assert normalise(form.format(one), FORM) != normalise(form.format(other), FORM)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("１２ｋｇ", "12kg"), ("ｶﾞﾗｽ", "ガラス"), ("ﬁsh", "fish"), ("maſs", "mass"), ("Ĳssel", "IJssel"), ("ŉ", "'n"),
        ("𝐜𝐚𝐭", "cat"), ("𝓒𝓪𝓽", "cat"), ("Ⅳ", "IV"), ("5㎏", "5kg"), ("㎡", "m²"), ("10²", "10^2"), ("H₂O", "H2O"),
        ("½", "1/2"), ("¹⁄₂", "½"), ("℃", "°C"), ("⑴", "(1)"), ("㈱", "(株)"), ("ﷲ", "الله"), ("ﺍﻟﻌﺮﺑﻴﺔ", "العربية"),
        ("⼀", "一"), ("豈", "豈"), ("Ω", "Ω"), ("µ", "μ"), ("ΣΟΦΟΣ", "σοφος"), ("cafe\u0301", "café"),
        ("a\u00a0b", "a b"),
        ("❤\ufe0f", "❤"), ("c\u200dat", "cat"), ("\u202bcat\u202c", "cat"), ("﹐", ","), ("︰", "…"), ("ﾡ", "ㄱ"),
    ],
)  # fmt: skip
def test_other_ways_to_type_a_text_have_its_key(one: str, other: str) -> None:
    """Width, font, ligature, position in a word or on a line, and units in one cell are how a text is set."""
    for form in ("{}", "a sign with {} on it"):
        assert normalise(form.format(one), FORM) == normalise(form.format(other), FORM)


def test_each_compatibility_character_is_judged() -> None:
    """Each stays as it is or becomes what Unicode gives for it, but for blanks and the marks of raised and lowered."""
    for char in COMPATIBILITY:
        written = compatibility.folded(char)
        if not compatibility.folds(char):
            assert written == char
        else:
            plain = unicodedata.normalize("NFKC", char)
            assert re.sub("[_^]", "", unicodedata.normalize("NFKC", written)) == re.sub("[_^]", "", plain), char


def test_the_pattern_has_all_that_folds() -> None:
    """The search for characters to fold ends before the end of Unicode, and misses none."""
    assert {char for char in COMPATIBILITY if compatibility.folds(char)} == {
        char for char in COMPATIBILITY if compatibility._pattern().fullmatch(char)
    }


def test_every_character_reaches_its_form_at_once() -> None:
    """Alone, between letters and between digits, each compatibility character gives a text that stays as it is."""
    for char in COMPATIBILITY:
        for form in ("{}", "a{}b", "1{}2", "a {} b"):
            once = normalise(form.format(char), FORM)
            assert trace(once, FORM).changes == (), hex(ord(char))


def test_case_folds_letter_by_letter() -> None:
    """No two characters become one by case unless Unicode folds them to one, and none becomes several but İ."""
    origins: dict[str, set[str]] = {}
    for char in map(chr, range(0x20000)):
        folded = folding.case(char)
        assert len(folded) == 1 or char == "İ"
        if folded != char or char.casefold() != char:
            origins.setdefault(folded, set()).add(folding._compose(char.casefold()))
    assert [folded for folded, forms in origins.items() if len(forms) > 1] == []


numbers = st.tuples(
    st.integers(1, 99), st.none() | st.integers(-99, 99), st.none() | st.integers(0, 9), st.sampled_from(["", "½", "⅓"])
)
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _typed(number: tuple[int, int | None, int | None, str], plain: bool) -> str:
    base, power, following, fraction = number
    exponent = "" if power is None else f"^{power}" if plain else str(power).translate(RAISED)
    gap = " " if plain and power is not None and following is not None else ""
    after = "" if following is None else f"{gap}{following}"
    part = {"": "", "½": " 1/2", "⅓": " 1/3"}[fraction] if plain else fraction
    return f"{base}{exponent}{after if power is not None else ''}{part} stars"


@given(numbers, numbers)
def test_numbers_are_one_only_if_they_are_one(
    one: tuple[int, int | None, int | None, str], other: tuple[int, int | None, int | None, str]
) -> None:
    """A number typed with signs of its own has the key of the same number in plain signs, and of no other."""
    assert normalise(_typed(one, plain=False), FORM) == normalise(_typed(one, plain=True), FORM)
    same = _typed(one, plain=True) == _typed(other, plain=True)
    assert (normalise(_typed(one, plain=False), FORM) == normalise(_typed(other, plain=False), FORM)) == same


def test_the_table_has_every_class() -> None:
    """The page for people judges each tag of Unicode's decompositions."""
    tags = {unicodedata.decomposition(char).partition(" ")[0] for char in COMPATIBILITY}
    text = TABLE.read_text("utf-8")
    assert [tag for tag in sorted(tags) if f"`{tag}`" not in text] == []
