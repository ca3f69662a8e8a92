"""Typing mistakes: a word that nobody knows becomes the one known word that is a single slip away, or stays.

Known are English (`words`), the deployment's synonyms, and its vocabulary: words of its own earlier prompts. The
vocabulary is a file that is read at start, not something a replica learns: what a prompt means must not depend on
which replica is asked, or on who asked first, and its digest is in the key. `encore vocabulary` writes such a file.

A word is corrected only if it has five letters or more, stands alone in Latin script, not in quotes, and exactly one
known word is at Damerau-Levenshtein distance 1 (two spellings of one word are one). That word must be common English
or in the vocabulary, begin alike, and not be the same word in another form: "analytics" is no slip of "analytic".
Measured on the 21,600 words of the 100,000 most frequent on the web (wordfreq) that the dictionaries lack, nearly all
names: any one known candidate would "correct" 4,056 of them ("pinterest" to "interest"), a common one 1,140, these
rules 800, many of them real slips ("definately"). A prompt in which many words are unknown, or with function words of
another language, is not English with a slip: nothing in it is corrected.

The index is the set of known words itself, asked for each of the 53 n + 25 strings a slip away: exact, 0.1 ms an
unknown word, no memory. Judged beside it on the smaller dictionary alone: symspellpy 0.02 to 0.2 ms, but 67 MB and 0.8
s at start; a scan by rapidfuzz 4.5 ms a word. symspellpy is the oracle of the tests.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass

from serve_app.prompt import spelling, words

MIN_LETTERS = 5
MAX_LETTERS = 48
"""The longest known word has 45: what is longer is no slip, and the look for one takes time by the square of it."""
MOST_UNKNOWN = 5
"""More different unknown words than this are no slips, and looking for all of them would take too long."""

_FUNCTION_WORDS = (  # of French, German, Spanish, Italian, Portuguese, Dutch and Swedish, where English lacks them
    "el los las una une le les des du et est dans avec sur pour der das und ein eine einen mit auf von im il lo gli di "
    "che per nel della uno da em um uma com het een op met og och av med"
)
_FOREIGN = frozenset(_FUNCTION_WORDS.split())
_LATIN = re.compile("[a-z\u00df-\u00f6\u00f8-\u024f]+")
# Not IGNORECASE: it takes dotless i and long s for letters of a word that has none of them.
_ALONE = re.compile(r"(?<![\w'@#/.\-])[A-Za-z]{5,}(?![\w'@#/\-]|\.\w)")


@dataclass(frozen=True, slots=True)
class Correction:
    """One word that was taken for another; `found` as typed, `used` as the model sees it."""

    found: str
    used: str

    def wire(self) -> dict[str, str]:
        """Return what answers say of it: {"from", "to"}."""
        return {"from": self.found, "to": self.used}


class Typos:
    """Corrects towards English and `vocabulary` (lower-case words)."""

    def __init__(self, vocabulary: Set[str] = frozenset()) -> None:
        self._vocabulary = vocabulary
        self._candidate_of = functools.lru_cache(maxsize=4_096)(self._only_candidate)  # names come again and again
        self._letters = "".join(sorted({*string.ascii_lowercase, *(c for word in vocabulary for c in word)}))

    def corrected(self, text: str, told: Callable[[Correction], object]) -> str:
        """Return `text` with its typing mistakes corrected; `told` gets each correction once."""
        unknown = self._unknown(text)
        table = {word: used for word in unknown if (used := self._candidate_of(word)) is not None}
        if not table:
            return text

        def correct(match: re.Match[str]) -> str:
            used = table.get(match[0].lower())
            return match[0] if used is None else spelling.like(match[0], used)

        for word, used in table.items():
            told(Correction(word, used))
        return _ALONE.sub(correct, text)

    def _unknown(self, text: str) -> list[str]:
        """Return the words that may be slips, in order; none if the text as a whole is not known to be English."""
        english = words.english()
        seen = dict.fromkeys(_LATIN.findall(text.lower()))
        unknown = [word for word in seen if word not in english and word not in self._vocabulary]
        known = len(seen) - len(unknown)
        if not unknown or len(unknown) > min(MOST_UNKNOWN, (known + 1) // 2) or not _FOREIGN.isdisjoint(seen):
            return []
        alone = {word.lower() for word in _ALONE.findall(text)}
        return [word for word in unknown if word in alone and len(word) <= MAX_LETTERS]

    def _only_candidate(self, word: str) -> str | None:
        english, american = words.english(), spelling.table()
        near = {each for each in _slips(word, self._letters) if each in english or each in self._vocabulary}
        candidates = {american.get(each, each) for each in near}
        if len(candidates) != 1:
            return None
        candidate = candidates.pop()
        trusted = english.get(candidate, False) or not near.isdisjoint(self._vocabulary)
        return candidate if trusted and _is_slip(word, candidate) else None


def _is_slip(typed: str, meant: str) -> bool:
    """Tell a slip from another word: plurals and suffixes are other words, and hardly anybody misses the first letter.

    The first two may be swapped, and the last may be doubled.
    """
    if typed[0] != meant[0] and (typed[0], typed[1]) != (meant[1], meant[0]):
        return False
    if typed[:-1] == meant:
        return typed[-1] == meant[-1]
    return meant != f"{typed}s"


def _slips(word: str, letters: str) -> Iterator[str]:
    """Yield every string at Damerau-Levenshtein distance 1 from `word`: a letter more, less, other, or two swapped."""
    for i in range(len(word) + 1):
        head, tail, rest = word[:i], word[i:], word[i + 1 :]
        yield from [head + letter + tail for letter in letters]
        if tail:
            yield head + rest
            yield from [head + letter + rest for letter in letters]
        if rest:
            yield head + rest[0] + tail[0] + rest[1:]
