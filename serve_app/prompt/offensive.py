"""Words that a correction never writes into a prompt: slurs and profanity.

The lists are those that expletives collects (Apache-2.0, plain data, released in 2026, 41 lists of other projects with
their origin). A word counts that two of them have, or one has its singular: single lists go as far as "black" and
"girls". Who types such a word in full has asked for it; a guess of ours must not.
"""

from __future__ import annotations

import functools
from collections import Counter

from serve_app.prompt.tables import digest_of, folder_of

_FILES = sorted(
    file
    for file in (folder_of("expletives") / "data" / "sources").glob("*.txt")
    if not file.name.startswith("lssu")  # words that are overused, not offensive
)
_LISTS = 2


@functools.cache
def words() -> frozenset[str]:
    """Return the offensive words, lower case."""
    counts = Counter(word for file in _FILES for word in {*_words_of(file.read_text("utf-8"))})
    return frozenset(word for word, lists in counts.items() if lists >= _LISTS)


def _words_of(text: str) -> list[str]:
    """Return the first word of every line: some lists explain it after ` - `; `#` begins a comment."""
    return [line.partition(" - ")[0].strip().lower() for line in text.splitlines() if not line.startswith("#")]


def is_offensive(word: str) -> bool:
    """Tell whether a lower-case word or its singular is one of them."""
    return word in words() or word.removesuffix("s") in words() or word.removesuffix("es") in words()


@functools.cache
def digest() -> str:
    """Identify the lists."""
    return digest_of(*_FILES)
