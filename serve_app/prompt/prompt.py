"""One meaning, one prompt: folding that never changes what is asked for.

The result is both the cache key's input and what the model sees, so the answer does not depend on who asked first.
Every step is a total function on strings; the whole is applied until nothing changes, which makes it idempotent
whatever the steps do to each other. `explain` callers get each step that changed something, in order.

Unicode: NFKC and case folding as in UAX #15 and the Unicode Standard, section 3.13.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from serve_app.core import PromptRules

Step = Callable[[str], str]

_QUOTE_STYLES = str.maketrans({"“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‘": "'", "’": "'", "‚": "'"})
_EDGE = " .,;:!?\N{HORIZONTAL ELLIPSIS}\N{IDEOGRAPHIC COMMA}\N{IDEOGRAPHIC FULL STOP}"
_REPEATED = re.compile(r"([.,;:!?\u3001\u3002])(?:\s*\1)+")
_TAGS = frozenset(map(chr, range(0xE0020, 0xE0080)))  # invisible alone, but they make England's flag Scotland's
_BLANKS = re.compile(r"\s+")
_ROUNDS = 8
# The bound keeps the function total; it is never reached. Round one removes all that is invisible, round two composes
# what that brought together; after them only `edges` changes anything: a pair of quotes of each kind once (then none of
# the kind is left inside) and one stray quote once (then their number is even). Round six changes nothing.


@dataclass(frozen=True, slots=True)
class Change:
    """One step that changed the prompt."""

    step: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Normalised:
    """A prompt in its canonical form and how it got there."""

    text: str
    changes: tuple[Change, ...]


def normalise(text: str, rules: PromptRules) -> str:
    """Return the canonical form of `text` under one model's rules; idempotent and total."""
    return trace(text, rules).text


def trace(text: str, rules: PromptRules) -> Normalised:
    """Normalise `text` and tell every step that changed something, in order."""
    changes: list[Change] = []
    steps = _steps(rules)
    for _ in range(_ROUNDS):
        start = text
        for name, step in steps:
            after = step(text)
            if after != text:
                changes.append(Change(name, text, after))
                text = after
        if text == start:
            break
    return Normalised(text, tuple(changes))


def _steps(rules: PromptRules) -> list[tuple[str, Step]]:
    steps: list[tuple[str, Step]] = [("unicode", _unicode), ("invisible", _invisible), ("quotes", _quotes)]
    if rules.fold_case:
        steps.append(("case", _case))
    steps += [("blanks", _blanks), ("repeated punctuation", _repeated)]
    if rules.fold_edge_punctuation:
        steps.append(("edges", _edges))
    return steps


def _unicode(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFKC", _in_canonical_order(text))


def _in_canonical_order(text: str) -> str:
    """Sort each run of combining marks as NFKC will: CPython does that by insertion, quadratic in the run's length."""
    runs = itertools.groupby(text, key=lambda char: unicodedata.combining(char) > 0)
    return "".join("".join(sorted(run, key=unicodedata.combining) if marks else run) for marks, run in runs)


def _case(text: str) -> str:
    """Fold case and compose again: folding takes some letters apart that NFKC had put together."""
    return _unicode(text.casefold())


def _invisible(text: str) -> str:
    """Drop format, control and variation characters; control characters that separate become blanks."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(char) for char in text)


def _visible(char: str) -> str:
    if char.isspace():
        return " "
    if char in _TAGS:
        return char
    if unicodedata.category(char) in ("Cf", "Cc", "Cs") or char in "\N{VARIATION SELECTOR-15}\N{VARIATION SELECTOR-16}":
        return ""
    return char


def _quotes(text: str) -> str:
    return text if text.isascii() else text.translate(_QUOTE_STYLES)


def _blanks(text: str) -> str:
    return _BLANKS.sub(" ", text).strip()


def _repeated(text: str) -> str:
    return _REPEATED.sub(r"\1", text)


def _edges(text: str) -> str:
    """Strip punctuation and stray or all-embracing quotes from both ends; inner quotes stay."""
    text = _stripped(text)
    inner = text[1:-1]
    for quote in "\"'":
        if len(text) > 1 and text[0] == text[-1] == quote and quote not in inner:
            return _stripped(inner)
    if text.count('"') % 2:
        text = text.removeprefix('"') if text.startswith('"') else text.removesuffix('"')
    return _stripped(text)


def _stripped(text: str) -> str:
    """Strip punctuation from both ends, but not the point of a number: .5 is not 5."""
    text = text.rstrip(_EDGE)
    left = text.lstrip(_EDGE)
    return f".{left}" if left[:1].isdigit() and text[: len(text) - len(left)].endswith(".") else left
