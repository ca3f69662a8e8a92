"""Typing mistakes: one slip from one known word is corrected and told, everything else is left alone."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from symspellpy.editdistance import DistanceAlgorithm, EditDistance

from serve_app.core import PromptRules
from serve_app.prompt import offensive, typos, words
from serve_app.prompt.prompt import Normaliser, normalise
from serve_app.prompt.typos import Correction, Typos

ON = PromptRules()
NORMALISER = Normaliser(ON)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("a cat plays the pianno", "a cat plays the piano"),
        ("an elehpant in the rain", "an elephant in the rain"),
        ("a giraff runs", "a giraffe runs"),
        ("a buterfly on a flower", "a butterfly on a flower"),
        ("a red umbrela", "a red umbrella"),
        ("Mountian at dawn", "mountain at dawn"),
        ("A Mountian At Dawn", "a mountain at dawn"),
        ("A MOUNTIAN AT DAWN", "a mountain at dawn"),
        ("a red circel", "a red circle"),
        ("a yelow star", "a yellow star"),
        ("a spining square", "a spinning square"),
        ("a mororcycle", "a motorcycle"),
        ("an oragne harbour", "an orange harbor"),
        ("an epnguin on ice", "an penguin on ice"),
    ],
)
def test_one_slip(typed: str, meant: str) -> None:
    """A letter more, less or other, or two swapped: the only word that it can be."""
    assert NORMALISER.trace(typed).text == meant


@pytest.mark.parametrize(
    "text",
    [
        "a bat",
        "a red bed",
        "two tow trucks",
        "a form from rome",
        "a goat in a coat",
        "a casual causal link",
        "a flaking waking walking wlaking",
        "a hte dog",
        "a ct",
        "naruto in shinjuku",
        "photos on pinterest",
        "a youtuber films",
        "web analytics on a screen",
        "a robot3 walks",
        "a pianno's keys",
        "a half-pianno",
        "see www.pianno.com",
        "@pianno",
        'a sign that says "PIANNO"',
        "un chat noir dans le jarden",
        "ein hund und ein elefannt",
        "pianno",
        "xylqz qwrtp zzkjh pianno",
        "a man with Pianno smiles",
        "a man named pianno smiles",
        "the house of Mr. Pianno",
        "the house of J. Pianno",
        "portrait of Anna Pianno",
        "petrov, mehta and donati in the rain",
        "Petrov in the rain",
        "A Portrait of Petrov",
        "A PORTRAIT OF MEHTA",
        "a shojo heroine in the rain",
        "a yorse in the field",
    ],
)
def test_no_slip(text: str) -> None:
    """Known words, short words, several candidates, names, plurals, compounds, quotes, addresses, other languages."""
    assert NORMALISER.trace(text).corrected == ()


def test_the_answer_says_so() -> None:
    """Each correction is told once with what was typed; in `explain` it is a step like any other."""
    result = NORMALISER.trace("A Pianno, a pianno and an elehpant")
    assert result.text == "a piano, a piano and an elephant"
    assert result.corrected == (Correction("pianno", "piano"), Correction("elehpant", "elephant"))
    assert result.corrected[0].wire() == {"from": "pianno", "to": "piano"}
    assert result.changes[-1].step == "typos"


def test_a_request_can_refuse() -> None:
    """Refused or switched off, the word stays as it was typed, and the prompt is another one."""
    assert NORMALISER.trace("a pianno", correct_typos=False).text == "a pianno"
    assert normalise("a pianno", PromptRules(typos=False)) == "a pianno"


def test_the_vocabulary_is_known() -> None:
    """A word of earlier prompts is no mistake, mistakes of it are corrected, and it makes a second candidate."""
    mine = Normaliser(ON, vocabulary={"pikachu", "pokémon", "pianna"})
    assert mine.trace("a pikachu plays").corrected == ()
    assert mine.trace("a pikacha plays").text == "a pikachu plays"
    assert mine.trace("a pokemon1 and a pokémmon").corrected == ()  # Latin letters alone, and of English
    assert mine.trace("a pianno").corrected == ()
    assert mine.rules.version != NORMALISER.rules.version


def test_a_model_that_keeps_case() -> None:
    """The corrected word has the case of the mistyped one."""
    keeps_case = PromptRules(fold_case=False)
    assert normalise("The Cat plays a pianno. Pianno", keeps_case) == "The Cat plays a piano. Piano"
    assert normalise("THE CAT PLAYS A PIANNO", keeps_case) == "THE CAT PLAYS A PIANO"
    assert normalise("a portrait of Pianno", keeps_case) == "a portrait of Pianno"


def test_two_spellings_are_one_candidate() -> None:
    """`coluor` is a slip of colour and of color, which are one word."""
    assert NORMALISER.trace("a coluor film").text == "a color film"


def test_a_correction_offends_nobody() -> None:
    """A word whose only candidate is a slur stays as it was typed."""
    assert words.english()["wanker"] >= words.COMMON
    assert NORMALISER.trace("a wwanker in the rain").corrected == ()
    for word in offensive.words() & words.english().keys():
        typed = f"{word[:2]}q{word[2:]}"
        corrected = NORMALISER.trace(f"the cat and a {typed} play in the rain").corrected
        assert not any(offensive.is_offensive(each.used) for each in corrected)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(words.english())[::997]), st.randoms(use_true_random=False))
def test_the_index_is_exact(word: str, random: object) -> None:
    """The words found a slip away are those that symspellpy's own distance finds by comparing with every word."""
    position = random.randrange(len(word))  # type: ignore[attr-defined]
    typed = word[:position] + random.choice(string.ascii_lowercase) + word[position + 1 :]  # type: ignore[attr-defined]
    distance = EditDistance(DistanceAlgorithm.DAMERAU_OSA)
    near = [each for each in words.english() if abs(len(each) - len(typed)) < 2]
    expected = {each for each in near if distance.compare(typed, each, 1) == 1}
    found = {each for each in typos._slips(typed, string.ascii_lowercase) if each in words.english()}
    assert found - {typed} == expected


@given(
    st.lists(
        st.sampled_from(
            ["a", "cat", "the", "plays", "pianno", "elehpant", "beautifull", "with", "naruto", "xqzzy", "le", "zxcvb"]
        ),
        max_size=14,
    )
)
def test_correcting_again_changes_nothing(chosen: list[str]) -> None:
    """However a prompt is made of known and unknown words, what was corrected stays."""
    once = NORMALISER.trace(" ".join(chosen))
    assert NORMALISER.trace(once.text).changes == ()


def test_a_long_text_of_unknown_words_asks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """More unknown words than a prompt can have by mistake are not looked up at all, so time stays bounded."""
    asked: list[str] = []
    monkeypatch.setattr(Typos, "_only_candidate", lambda self, word: asked.append(word))
    unknown = [f"{a}{b}qzx{a}" for a in string.ascii_lowercase for b in string.ascii_lowercase]
    normaliser = Normaliser(ON)
    normaliser.trace("the cat and the dog " * 5_000 + " ".join(unknown))
    assert asked == []
    normaliser.trace(f"the cat and the dog play in the house {unknown[0]}")
    assert asked == [unknown[0]]


def test_dictionaries_know_both_englishes() -> None:
    """British and American words, and plurals, are known; common words are marked."""
    english = words.english()
    assert all(
        word in english
        for word in ["colour", "color", "theatre", "theater", "colors", "airplane", "aeroplane", "elephants"]
    )
    assert english["elephant"] >= words.COMMON
    assert english["briton"] < words.COMMON
    assert all(word.isascii() and word.islower() for word in english)


def test_a_word_longer_than_any_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes time by the square of a word's length is not begun for a word that no known one is near."""
    monkeypatch.setattr(typos, "_slips", lambda word, letters: pytest.fail(f"looked for {len(word)} letters"))
    assert Typos().corrected(f"a red {'q' * 1990}", pytest.fail) == f"a red {'q' * 1990}"


@pytest.mark.parametrize("word", ["d\u0131amond", "D\u0130AMOND", "\u017fquare", "dia\u212aond"])
def test_letters_that_only_look_like_english_ones(word: str) -> None:
    """Dotless i, dotted I, long s and the Kelvin sign, which IGNORECASE takes for i, s and k, make no slip."""
    assert Typos().corrected(f"a red {word} shape", pytest.fail) == f"a red {word} shape"


@given(
    st.lists(
        st.sampled_from(["a", "cat", "Pianno", "PIANNO", "pianno", "Elehpant", "Plays.", "with", "Mr", "named"]),
        max_size=10,
    )
)
def test_the_form_is_final_but_for_names(chosen: list[str]) -> None:
    """However words are capitalised, no step but the typing mistakes', judged by capitals, changes the form again."""
    once = NORMALISER.trace(" ".join(chosen)).text
    assert NORMALISER.trace(once, correct_typos=False).changes == ()
