"""What the writing says of a word: a capital inside a sentence is a name, and so is what follows "named" or "Mrs".

Read before case is folded, from the prompt as it was typed. A capital says nothing where all words have one (headlines,
shouting), at the start of a sentence, or of a word that also stands without it. Languages without capitals, and people
who use none, leave it to the known names (`names`).
"""

from __future__ import annotations

import re

from serve_app.prompt import folding, names, words

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_SENTENCE_END = re.compile("[.!?。]")
_NEW_LINE = re.compile("[\r\n\x85\u2028\u2029]+")
_TITLE_WORDS = "mr mrs ms miss mx dr prof sir dame lady lord st saint sr jr capt col gen lt sgt rev hon"
_TITLES = frozenset(_TITLE_WORDS.split())
_NAMING = _TITLES | {"named", "called", "nicknamed", "surnamed", "aka"}
_SMALL_WORDS = "a an the and or nor but for of on in at to by as is with from into over under up off via per vs it its"
_SMALL = frozenset(_SMALL_WORDS.split())  # headlines leave them small
_MOST = 20_000
"""Only so much of a prompt is read for names, so that time stays bounded; what comes later counts as lower case."""


def named_in(text: str) -> frozenset[str]:
    """Return the words, lower case, that `text` (as it was typed) writes as names."""
    text = folding.invisible(folding.unicode(_NEW_LINE.sub(" . ", text[:_MOST])))
    capitals, plain, named = set[str](), set[str](), set[str]()
    before, end = "", 0
    for match in _WORD.finditer(text):
        word, lower = match[0], match[0].lower()
        if before in _NAMING:
            named.add(lower)
        if word == lower:
            plain.add(lower)
        elif before and not _ends_sentence(text[end : match.start()], before):
            capitals.add(lower)
        before, end = lower, match.end()
    if text.isupper() or (plain <= _SMALL and any(map(_is_ordinary, capitals))):
        return frozenset(named)
    return frozenset(named | (capitals - plain))


def _is_ordinary(word: str) -> bool:
    return len(word) > 1 and (word in _SMALL or (word in words.english() and word not in names.known()))


def _ends_sentence(between: str, before: str) -> bool:
    """Tell whether a sentence ends in `between`; the point of a title or an initial ends none."""
    if between.startswith(".") and (before in _TITLES or len(before) == 1):
        between = between[1:]
    return _SENTENCE_END.search(between) is not None
