"""One meaning, one prompt: from what was typed to what the model sees, and every step between.

The result is both the cache key's input and what the model sees, so the answer does not depend on who asked first: the
same text under the same rules gives the same result in every process. The steps run in order and are repeated until
none changes anything, which makes the whole idempotent whatever the steps do to each other; but typing mistakes are
judged by the prompt as it was typed, so a word that its capital kept may be corrected where the form is sent in. What
stands in quotation marks is taken out before the steps that could change it (`quoted`). Callers get each step that
changed something, in order. Steps that need tables load them when a text first needs them.
"""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from functools import partial

from serve_app.core import PromptRules
from serve_app.prompt import chinese, folding, names, offensive, quoted, spelling, words, wrappers
from serve_app.prompt.synonyms import Synonyms
from serve_app.prompt.typos import Correction, Typos

Step = tuple[str, Callable[[str], str]]

_ROUNDS = 12
# The bound keeps the function total; it is never reached. Each round but the last takes something away for good: what
# is invisible, a pair of quotes of one kind, a wrapper, a blank, a British, traditional, misspelt or replaced word.


@dataclass(frozen=True, slots=True)
class Change:
    """One step that changed the prompt."""

    step: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Normalised:
    """A prompt in its canonical form, how it got there, and which words were taken for typing mistakes."""

    text: str
    changes: tuple[Change, ...]
    corrected: tuple[Correction, ...] = ()


class Normaliser:
    """Normalises under one model's rules with one deployment's synonyms and vocabulary; `rules` names all of it."""

    def __init__(
        self, rules: PromptRules, *, synonyms: Synonyms | None = None, vocabulary: Set[str] = frozenset()
    ) -> None:
        self._synonyms = synonyms or Synonyms()
        self._vocabulary = frozenset(vocabulary)
        self._typos = Typos(self._vocabulary | self._synonyms.words())
        self._given = rules
        self._form, self._content = _form_steps(rules), self._content_steps(rules)

    @functools.cached_property
    def rules(self) -> PromptRules:
        """The rules with the digest of every table and file behind the switches: what belongs into key(prompt)."""
        parts = [
            f"unicode {unicodedata.unidata_version}",
            f"chinese {chinese.digest()}" if self._given.traditional_to_simplified else "",
            f"spelling {spelling.digest()}" if self._given.spelling or self._given.typos else "",
            f"synonyms {self._synonyms.digest}",
            f"words {self._words_digest()}" if self._given.typos else "",
        ]
        return replace(self._given, tables=hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16])

    def _words_digest(self) -> str:
        return " ".join([words.digest(), names.digest(), offensive.digest(), *sorted(self._vocabulary)])

    def load(self) -> None:
        """Read every table that the rules need, which otherwise the first prompt waits for (0.7 s)."""
        self.trace("an unknwon word, 一隻貓")

    def trace(self, text: str, *, correct_typos: bool = True) -> Normalised:
        """Normalise `text` and tell every step that changed something, in order; without `correct_typos` none does."""
        changes: list[Change] = []
        corrected: dict[Correction, None] = {}
        typos = partial(self._corrected, text, corrected) if self._given.typos and correct_typos else None
        for _ in range(_ROUNDS):
            start = text
            for name, step in self._form:
                text = _taken(changes, name, text, step(text))
            text = self._content_round(text, changes, typos)
            if text == start:
                break
        return Normalised(text, tuple(changes), tuple(corrected))

    def _corrected(self, written: str, corrected: dict[Correction, None], text: str) -> str:
        return self._typos.corrected(text, corrected.setdefault, written)

    def _content_round(self, text: str, changes: list[Change], typos: Callable[[str], str] | None) -> str:
        masked, contents = quoted.taken_out(text, fold_names=self._given.fold_case)
        if contents:
            text = _taken(changes, "quoted", text, quoted.put_back(masked, contents))
        for name, step in self._content:
            after = step(masked)
            if after != masked:
                masked = after
                text = _taken(changes, name, text, quoted.put_back(masked, contents))
        if typos is None:
            return text
        after = typos(masked)
        return text if after == masked else _taken(changes, "typos", text, quoted.put_back(after, contents))

    def _content_steps(self, rules: PromptRules) -> list[Step]:
        chosen: list[tuple[bool, str, Callable[[str], str]]] = [
            (rules.fold_case, "case", folding.case),
            (True, "chinese punctuation", chinese.punctuation),
            (True, "punctuation", folding.punctuation),
            (True, "blanks beside chinese", chinese.spacing),
            (rules.traditional_to_simplified, "traditional to simplified", chinese.simplified),
            (rules.wrappers, "wrapper", wrappers.unwrapped),
            (rules.spelling, "spelling", spelling.american),
            (bool(self._synonyms.table), "synonyms", self._synonyms.merged),
        ]
        return [(name, step) for on, name, step in chosen if on]


def _form_steps(rules: PromptRules) -> list[Step]:
    steps: list[Step] = [
        ("unicode", folding.unicode),
        ("invisible", folding.invisible),
        ("quotes", folding.quotes),
        ("blanks", folding.blanks),
        ("dashes", folding.dashes),
    ]
    return [*steps, ("edges", folding.edges)] if rules.fold_edge_punctuation else steps


def _taken(changes: list[Change], name: str, before: str, after: str) -> str:
    if after != before:
        changes.append(Change(name, before, after))
    return after


@functools.lru_cache(maxsize=64)
def _normaliser(rules: PromptRules) -> Normaliser:
    return Normaliser(rules)


def normalise(text: str, rules: PromptRules) -> str:
    """Return the canonical form of `text` under one model's rules; total, and idempotent but for names."""
    return trace(text, rules).text


def trace(text: str, rules: PromptRules) -> Normalised:
    """Normalise `text` under a model's rules without a deployment's files."""
    return _normaliser(rules).trace(text)
