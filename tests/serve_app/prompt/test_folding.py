"""Folding of form: what looks alike becomes alike, what means something stays, whatever characters come."""
# ruff: noqa: RUF001 - these tests are about look-alike characters

from __future__ import annotations

import re
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.prompt import folding

EVERY_CHARACTER = [chr(code) for code in range(sys.maxunicode + 1)]

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
SCOTLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"


@pytest.mark.parametrize(
    ("typed", "folded"),
    [
        ("Ａ　ｃａｔ", "A cat"),
        ("ﬁsh", "fish"),
        ("cafe\u0301", "café"),
        ("３．５", "3.5"),
        ("㎏", "kg"),
        ("1½ cups", "1 1/2 cups"),
        ("½ cup", "1/2 cup"),
        ("10² cats", "10^2 cats"),
        ("10⁻²", "10^−2".replace("−", "\u2212")),
        ("3①", "3①"),
        ("H₂O", "H2O"),
        ("m²", "m^2"),
        ("a cat´s paw", "a cat's paw"),
        ("a cat`s paw", "a cat's paw"),
    ],
)
def test_unicode(typed: str, folded: str) -> None:
    """Other ways to type a text are that text, but digits never run into digits they did not belong to."""
    assert folding.unicode(typed) == folded


def test_numbers_never_run_together() -> None:
    """No character that NFKC writes with digits, beside a digit, gives a number that was not there."""
    for char in EVERY_CHARACTER:
        plain = unicodedata.normalize("NFKC", char)
        tag = unicodedata.decomposition(char).partition(">")[0]
        if char.isascii() or not re.search("[0-9]", plain) or tag in ("<wide", "<font", "<narrow"):
            continue
        if "0" <= plain[0] <= "9" and "SUBSCRIPT" not in unicodedata.name(char, ""):
            assert not re.match(r"3[0-9]", folding.unicode(f"3{char}")), char
        if "0" <= plain[-1] <= "9" and "SUPERSCRIPT" not in unicodedata.name(char, ""):
            assert not re.search(r"[0-9]3$", folding.unicode(f"{char}3")), char


def test_every_mark_is_sorted_before_cpython_sorts() -> None:
    """Each combining mark of Unicode is in the sets of characters whose long runs are looked for and sorted."""
    for pattern in (folding._MAYBE_MARKS, folding._marks()):
        one = re.compile(pattern.pattern.removesuffix("{32,}"))
        assert all(one.match(char) for char in EVERY_CHARACTER if unicodedata.combining(char))


SHOWN = re.compile("[\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd\U00013430-\U0001343f]")
"""Format characters that show (the Arabic number sign), or set hieroglyphs beside or above each other."""


def test_every_invisible_character_goes() -> None:
    """No invisible format, control or surrogate character survives; a blank is left where one separates."""
    for char in EVERY_CHARACTER:
        if unicodedata.category(char) in ("Cc", "Cf", "Cs"):
            expected = (f"é{char}x",) if SHOWN.match(char) else ("éx", "é x")
            assert folding.invisible(f"é{char}x") in expected, hex(ord(char))


@pytest.mark.parametrize(
    ("typed", "folded"),
    [
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        ("\u0915\u094d\u200d\u0937", "\u0915\u094d\u200d\u0937"),
        ("\u0645\u200b\u200c\u200b\u06cc", "\u0645\u200c\u06cc"),
        ("\u0645\u200c cat", "\u0645 cat"),
        ("c\u200cat", "cat"),
    ],
)
def test_scripts_that_spell_with_joiners_keep_them(typed: str, folded: str) -> None:
    """A (non-)joiner between two letters of Persian or Hindi is spelling; elsewhere it is noise."""
    assert folding.invisible(typed) == folded


@pytest.mark.parametrize(
    ("typed", "folded"),
    [
        ("\u2764\ufe0f red", "\u2764 red"),
        (FAMILY, FAMILY),
        ("\U0001f44d\U0001f3fd", "\U0001f44d\U0001f3fd"),
        (SCOTLAND, SCOTLAND),
        ("a\U000e0067\U000e007f", "a"),
        ("\u2764\ufe0f\u200d\U0001f525", "\u2764\u200d\U0001f525"),
        ("c\u200dat", "cat"),
        ("1\ufe0f\u20e3", "1\u20e3"),
        ("a\tb\x0bc", "a b c"),
        ("\U0001f468\u200d cat", "\U0001f468 cat"),
    ],
)
def test_emoji_keep_their_meaning(typed: str, folded: str) -> None:
    """Variation selectors go; joiners inside emoji, skin tones and the tags of flags stay; hidden tags go."""
    assert folding.invisible(typed) == folded


@pytest.mark.parametrize(
    ("typed", "folded"),
    [
        ("well\u2010known", "well-known"),
        ("\u22125 degrees", "-5 degrees"),
        ("1990\u20132000", "1990-2000"),
        ("a cat\u2014a dog", "a cat - a dog"),
        ("a cat -- a dog", "a cat - a dog"),
        ("a cat \u2013 a dog", "a cat - a dog"),
        ("well-known", "well-known"),
        ("猫\u2014\u2014狗", "猫 - 狗"),
    ],
)
def test_dashes(typed: str, folded: str) -> None:
    """Every dash is a hyphen, a sign or a separator, and stays what it is."""
    assert folding.dashes(typed) == folded


@pytest.mark.parametrize(
    ("typed", "folded"),
    [
        ("a cat,a dog", "a cat, a dog"),
        ("a cat , a dog", "a cat, a dog"),
        ("3,000 cats", "3,000 cats"),
        ("a cat , 3.5 m", "a cat, 3.5 m"),
        ("at 16:9", "at 16:9"),
        ("milk .5 l", "milk .5 l"),
        ("wow!!! a cat", "wow! a cat"),
        ("a cat...5 dogs", "a cat. 5 dogs"),
        ("a cat. . .5 l", "a cat. .5 l"),
        ("猫, 狗", "猫,狗"),
        ("猫. 3只狗", "猫. 3只狗"),
        ("cat, 狗", "cat,狗"),
        ("rain;snow", "rain; snow"),
    ],
)
def test_punctuation(typed: str, folded: str) -> None:
    """Commas stand as English sets them, without blanks beside Chinese; numbers keep theirs."""
    assert folding.punctuation(typed) == folded


@pytest.mark.parametrize(
    ("typed", "folded"),
    [
        ("- a cat -", "a cat"),
        ("-5 degrees", "-5 degrees"),
        ("- 5 degrees", "- 5 degrees"),
        ("...5 cats", "5 cats"),
        ('a TV of 55"', 'a TV of 55"'),
        ('a cat"', "a cat"),
        (".5 litres", ".5 litres"),
        ("?!a cat", "a cat"),
        ('"a cat"!!', "a cat"),
        ('"a" and "b"', '"a" and "b"'),
        ("- - -", ""),
        ("-", ""),
        ("a-", "a-"),
    ],
)
def test_edges(typed: str, folded: str) -> None:
    """What stands at the ends and says nothing goes; signs and points of numbers stay."""
    assert folding.edges(typed) == folded


@given(
    st.text(), st.sampled_from([folding.unicode, folding.invisible, folding.quotes, folding.case, folding.punctuation])
)
def test_each_step_is_total(text: str, step: folding.Step) -> None:
    """Each step takes any text."""
    assert isinstance(step(text), str)
