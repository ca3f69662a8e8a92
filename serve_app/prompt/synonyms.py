"""Synonyms: groups of words that one deployment wants to be one prompt, from a file of its own; without a file, none.

One group a line, terms separated by commas, the first is what the model sees; `#` begins a comment:

    sofa, couch, settee
    小狗, 狗狗

Terms are whole words (Chinese has no blanks, so there a term is found wherever its characters stand; the longest
wins) and are normalised like prompts. Groups that could undo each other or make a text grow without end are refused
when the file is read.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from serve_app.prompt.folding import CJK, case

_COMMA = re.compile("[,，、]")
_TOKEN = re.compile(rf"[{CJK}]|(?:(?![{CJK}])[\w'-])+")
_ATTEMPTS = 10_000
_LATIN_END = rf"(?:(?![{CJK}])[\w'-])"


class Synonyms:
    """A table of terms to the first of their group; empty without a file."""

    def __init__(self, table: Mapping[str, str] | None = None, digest: str = "") -> None:
        """Take terms to canonical terms, both normalised. Raises ValueError where replacing might not end."""
        self.table = dict(table or {})
        self.digest = digest
        _check(self.table)
        terms = sorted(self.table, key=lambda term: (-len(term), term))
        self._pattern = re.compile("|".join(map(_whole, terms)), re.IGNORECASE) if terms else None

    @classmethod
    def read(cls, path: Path, normalise: Callable[[str], str]) -> Synonyms:
        """Read a file of groups; raises OSError, UnicodeDecodeError, and ValueError for groups that contradict."""
        data = path.read_bytes()
        table: dict[str, str] = {}
        seen: dict[str, str] = {}
        for line in data.decode("utf-8-sig").splitlines():
            terms = [term for term in map(normalise, _COMMA.split(line.partition("#")[0])) if term]
            for term in terms:
                if seen.setdefault(case(term), terms[0]) != terms[0]:
                    raise ValueError(f"'{term}' is in two groups of synonyms.")
                if case(term) != case(terms[0]):
                    table[case(term)] = terms[0]
        return cls(table, hashlib.sha256(data).hexdigest())

    def words(self) -> frozenset[str]:
        """Return every word of every term, lower case."""
        terms = [*self.table, *self.table.values()]
        return frozenset(word.lower() for term in terms for word in _TOKEN.findall(term))

    def merged(self, text: str) -> str:
        """Return `text` with every term replaced by the first of its group."""
        if self._pattern is None:
            return text
        while (merged := self._pattern.sub(lambda match: self.table.get(case(match[0]), match[0]), text)) != text:
            text = merged
        return text


def _whole(term: str) -> str:
    before = rf"(?<!{_LATIN_END})" if re.match(_LATIN_END, term[0]) else ""
    after = rf"(?!{_LATIN_END})" if re.match(_LATIN_END, term[-1]) else ""
    return f"{before}{re.escape(term)}{after}"


def _check(table: Mapping[str, str]) -> None:
    """Refuse a table that might replace for ever.

    Replacing ends if words can be given weights under which every replacement makes the text lighter. They are sought
    as a perceptron does, which finds them where there are any.
    """
    rules = [_weights_of(term, canonical) for term, canonical in table.items()]
    weights: Counter[str] = Counter()
    for _ in range(_ATTEMPTS):
        too_heavy = [rule for rule in rules if sum(weights[token] * change for token, change in rule.items()) <= 0]
        if not too_heavy:
            return
        for token, change in too_heavy[0].items():
            weights[token] = max(0, weights[token] + change)
    raise ValueError("Groups of synonyms overlap: replacing one after the other might not end.")


def _weights_of(term: str, canonical: str) -> Counter[str]:
    """Return how often each word goes (positive) and comes when `term` is replaced."""
    change = Counter(_TOKEN.findall(term))
    change.subtract(_TOKEN.findall(case(canonical)))
    return change
