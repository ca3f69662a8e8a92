"""Synonyms: whole words of a file, the first of a group stands for all, and groups that would not end are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from serve_app.core import PromptRules
from serve_app.prompt.prompt import Normaliser, normalise
from serve_app.prompt.synonyms import Synonyms

ON = PromptRules()
FILE = """
# furniture
Sofa, couch , settee
car, motor car, automobile
grey, silver
小狗, 狗狗、幼犬
"""


def read(tmp_path: Path, text: str) -> Synonyms:
    """Read groups as the wiring does."""
    file = tmp_path / "synonyms.txt"
    file.write_text(text, encoding="utf-8")
    return Synonyms.read(file, lambda term: normalise(term, ON))


@pytest.mark.parametrize(
    ("typed", "canonical"),
    [
        ("A cat on a COUCH!", "a cat on a sofa"),
        ("a settee, a couch", "a sofa, a sofa"),
        ("couches", "couches"),
        ("an automobile", "an car"),
        ("a motor car", "a car"),
        ("a motor-car", "a motor-car"),
        ("a silver vase", "a gray vase"),
        ("一只狗狗", "一只小狗"),
        ("一隻幼犬", "一只小狗"),
        ('a sign "COUCH"', 'a sign "COUCH"'),
        ("a couch-surfer", "a couch-surfer"),
    ],
)
def test_whole_words(tmp_path: Path, typed: str, canonical: str) -> None:
    """Any term of a group becomes its first; parts of words, compounds and quotes stay."""
    normaliser = Normaliser(ON, synonyms=read(tmp_path, FILE))
    assert normaliser.trace(typed).text == canonical
    assert normaliser.trace(canonical).changes == ()


def test_off_by_default() -> None:
    """Without a file no word stands for another."""
    assert normalise("a couch", ON) != normalise("a sofa", ON)


def test_the_file_is_in_the_rules(tmp_path: Path) -> None:
    """Other groups are other rules, so other keys."""
    versions = {
        Normaliser(ON, synonyms=synonyms).rules.version
        for synonyms in (None, read(tmp_path, FILE), read(tmp_path, "sofa, couch"))
    }
    assert len(versions) == 3


@pytest.mark.parametrize(
    "groups",
    [
        "cat, kitty\ndog, kitty",
        "big cat, cat",
        "x b, x a\na y, b y",
        "a b, a a, b b",
        "猫猫, 猫",
        "new york, york\nyork, ny",
    ],
)
def test_groups_that_contradict_are_refused(tmp_path: Path, groups: str) -> None:
    """A term in two groups, and replacements that could go on for ever, are errors when the file is read."""
    with pytest.raises(ValueError, match=r"two groups|overlap"):
        read(tmp_path, groups)


def test_words_of_the_file_are_known(tmp_path: Path) -> None:
    """A term that no dictionary has is not taken for a slip of another word, and slips of it are corrected."""
    normaliser = Normaliser(ON, synonyms=read(tmp_path, "sofa, Sofaa"))
    assert normaliser.trace("a cat on a sofaa").text == "a cat on a sofa"


terms = st.text(st.sampled_from("ab 猫狗"), min_size=1, max_size=4).map(str.strip).filter(bool)


@given(st.dictionaries(terms, terms, max_size=4), st.text(st.sampled_from("ab 猫狗"), max_size=20))
def test_what_is_accepted_ends(table: dict[str, str], text: str) -> None:
    """Every table that is not refused gives every text an end, and merging again changes nothing."""
    table = {source: target for source, target in table.items() if source != target}
    assume(not table.keys() & set(table.values()))
    try:
        synonyms = Synonyms(table)
    except ValueError:
        return
    merged = synonyms.merged(text)
    assert synonyms.merged(merged) == merged


@pytest.mark.parametrize("word", ["d\u0131van", "D\u0130VAN", "\u017fofa", "divan"])
def test_letters_that_ignorecase_takes_for_others(word: str) -> None:
    """A word that matches only because case is ignored beyond ASCII is either a term or stays; it is never an error."""
    merged = Synonyms({"divan": "couch", "sofa": "couch"}).merged(f"a {word}")
    assert merged in (f"a {word}", "a couch")
