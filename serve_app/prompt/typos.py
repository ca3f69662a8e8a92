"""Typing mistakes: an unknown word becomes the one likely word that is a single slip away, or stays.

Known are English (`words`), the deployment's synonyms, and its vocabulary: words of its own earlier prompts. The
vocabulary is a file that is read at start, not something a replica learns: what a prompt means must not depend on
which replica is asked, or on who asked first, and its digest is in the key. `encore vocabulary` writes such a file.

A word is corrected only if it has five letters or more, stands alone in Latin script, not in quotes, is no known name
(`names`) and not written as one (`written`: a capital inside a sentence), and one known word at Damerau-Levenshtein
distance 1 is likelier than all others (two spellings of one word are one): said a hundred times as often, or the only
one with a doubled consonant missed ("spining"). That word must be common English or in the vocabulary, begin alike, not
be the same word in another form ("analytics" is no slip of "analytic"), and be no slur (`offensive`). A prompt in which
many words are unknown, or with function words of another language, is not English with a slip: nothing in it is
corrected. `benchmarks/prompt.py` counts: of 43,000 names in five ways to write them none changes; of slips made at
random 60 % are mended, and none becomes another word.

The index is the set of known words itself, asked for each of the 53 n + 25 strings a slip away: exact, 0.1 ms an
unknown word, no memory. Judged beside it on the smaller dictionary alone: symspellpy 0.02 to 0.2 ms, but 67 MB and 0.8
s at start; a scan by rapidfuzz 4.5 ms a word. symspellpy is the oracle of the tests.
"""

from __future__ import annotations

import functools
import itertools
import re
import string
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass

from serve_app.prompt import names, offensive, spelling, words
from serve_app.prompt.capitalisation import named_in

MIN_LETTERS = 5
MAX_LETTERS = 48
"""The longest known word has 45: what is longer is no slip, and the look for one takes time by the square of it."""
MOST_UNKNOWN = 5
"""More different unknown words than this are no slips, and looking for all of them would take too long."""

_LIKELIER = 100
"""So many times as often said as any other, a candidate is the one that was meant."""

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

    def corrected(self, text: str, told: Callable[[Correction], object], written: str | None = None) -> str:
        """Return `text` with its typing mistakes corrected; `told` gets each correction once.

        `written` is the prompt as it was typed, from which names are told by their capitals; without it `text` is.
        """
        table = {word: used for word in self._unknown(text) if (used := self._candidate_of(word)) is not None}
        if table:
            named = named_in(text if written is None else written)
            table = {word: used for word, used in table.items() if word not in named}
        if not table:
            return text

        def correct(match: re.Match[str]) -> str:
            used = table.get(match[0].lower())
            return match[0] if used is None else spelling.like(match[0], used)

        for word, used in table.items():
            told(Correction(word, used))
        return _ALONE.sub(correct, text)

    def _unknown(self, text: str) -> list[str]:
        """Return the words that may be slips, in order; none if the text as a whole is not known to be English.

        Names count for neither side.
        """
        english, people = words.english(), names.known()
        seen = dict.fromkeys(_LATIN.findall(text.lower()))
        new = [word for word in seen if word not in english and word not in self._vocabulary]
        unknown = [word for word in new if word not in people]
        known = len(seen) - len(new)
        if not unknown or len(unknown) > min(MOST_UNKNOWN, (known + 1) // 2) or not _FOREIGN.isdisjoint(seen):
            return []
        alone = {word.lower() for word in _ALONE.findall(text)}
        return [word for word in unknown if word in alone and len(word) <= MAX_LETTERS]

    def _only_candidate(self, word: str) -> str | None:
        """Return the word that was meant, if no other is nearly as likely and it is no slur."""
        counts: dict[str, int] = {}
        for each in filter(self._is_known, _slips(word, self._letters)):
            meant = spelling.table().get(each, each)
            counts[meant] = max(counts.get(meant, 0), self._count(each), self._count(meant))
        doubled = [each for each, count in counts.items() if count >= words.COMMON and _is_missed_double(word, each)]
        if len(doubled) == 1 and self._vocabulary.isdisjoint(counts):
            counts = {doubled[0]: counts[doubled[0]]}
        meant = max(counts, key=counts.__getitem__, default="")
        rival = max((count for each, count in counts.items() if each != meant), default=0)
        if counts.get(meant, 0) < max(words.COMMON, rival * _LIKELIER) or not _is_slip(word, meant):
            return None
        if offensive.is_offensive(meant) or not (len(counts) == 1 or self._vocabulary.isdisjoint(counts)):
            return None
        return meant

    def _is_known(self, word: str) -> bool:
        return word in self._vocabulary or word in words.english()

    def _count(self, word: str) -> int:
        return max(words.english().get(word, 0), words.COMMON if word in self._vocabulary else 0)


def _is_missed_double(typed: str, meant: str) -> bool:
    """Tell whether `typed` is `meant` with one of two equal consonants missing: "spining"."""
    return any(
        a == b and a not in "aeiou" and typed == meant[:i] + meant[i + 1 :]
        for i, (a, b) in enumerate(itertools.pairwise(meant))
    )


def _is_slip(typed: str, meant: str) -> bool:
    """Tell a slip from another word: plurals and suffixes are other words, and a first letter is seldom missed.

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
