"""The vocabulary of a deployment: words of its own earlier prompts, to which typing mistakes may be corrected.

It is a file (one word a line, `#` begins a comment), made from prompts on purpose and read at start, never learnt
while serving: otherwise the same prompt would mean one thing on a replica that has seen a word and another on one that
has not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Set
from pathlib import Path

from serve_app.prompt.folding import case
from serve_app.prompt.prompt import Normaliser
from serve_app.prompt.typos import MIN_LETTERS

MIN_PROMPTS = 2
"""A word of a single prompt may be a slip itself."""

_WORD = re.compile(r"[^\W\d_]+")


def read_vocabulary(path: Path) -> Set[str]:
    """Return the words of a file, in lower case; raises OSError, UnicodeDecodeError, ValueError for what is no word."""
    lines = (line.partition("#")[0].strip() for line in path.read_text("utf-8-sig").splitlines())
    vocabulary = frozenset(case(line) for line in lines if line)
    for word in vocabulary:
        if not _WORD.fullmatch(word):
            raise ValueError(f"'{word}' is not one word.")
    return vocabulary


def vocabulary_of(prompts: Iterable[str], normaliser: Normaliser, *, min_prompts: int = MIN_PROMPTS) -> list[str]:
    """Return the words of at least five letters that `min_prompts` different prompts have, sorted.

    Prompts that normalise to one are one, and nothing is corrected on the way.
    """
    texts = {case(normaliser.trace(prompt, correct_typos=False).text) for prompt in prompts}
    counts = Counter(word for text in texts for word in {*_WORD.findall(text)})
    return sorted(
        word for word, count in counts.items() if count >= min_prompts and len(word) >= MIN_LETTERS and _is_latin(word)
    )


def _is_latin(word: str) -> bool:
    return all(letter < "\u0250" for letter in word)
