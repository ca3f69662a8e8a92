"""The vocabulary file: made from prompts on purpose, read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.core import PromptRules
from serve_app.prompt.prompt import Normaliser
from serve_app.prompt.vocabulary import read_vocabulary, vocabulary_of

NORMALISER = Normaliser(PromptRules())


def test_words_of_several_prompts() -> None:
    """A word counts once per prompt, forms of one prompt are one, short words and other scripts are left out."""
    prompts = [
        "Pikachu runs home",
        "pikachu RUNS home!!",
        "a Pikachu sleeps",
        "a togepi togepi",
        "猫猫猫猫猫 a",
        "a 猫猫猫猫猫",
    ]
    assert vocabulary_of(prompts, NORMALISER) == ["pikachu"]
    assert vocabulary_of(prompts, NORMALISER, min_prompts=1) == ["pikachu", "sleeps", "togepi"]


def test_it_is_read_as_it_is_written(tmp_path: Path) -> None:
    """Comments and blank lines are no words; case does not matter."""
    file = tmp_path / "words.txt"
    file.write_text("# ours\nPikachu\n\npokémon # a name\n", encoding="utf-8")
    assert read_vocabulary(file) == {"pikachu", "pokémon"}


@pytest.mark.parametrize("line", ["two words", "a-b", "3d", "x1"])
def test_what_is_no_word_is_refused(tmp_path: Path, line: str) -> None:
    """A line that cannot be a word of a prompt is an error, not silently without effect."""
    file = tmp_path / "words.txt"
    file.write_text(line, encoding="utf-8")
    with pytest.raises(ValueError, match="not one word"):
        read_vocabulary(file)
