"""What stands in quotation marks: written words and names, which the steps after this one must not touch.

`A sign that says "OPEN Late!"` asks for those letters in that case. Rather than guess from a list of verbs which quotes
ask for written words, all do unless a word for naming stands before them: a list that is too short would merge two
different signs (a wrong video), one quote kept too carefully only costs a render. Names in quotes fold their case, and
neither kind is ever respelled. Single quotes around two letters or more become double ones ('n' is no quote). Contents
are taken out before a step and put back after it, so that steps still see that something stands there.
"""

from __future__ import annotations

import re

from serve_app.prompt.folding import case

MASK = "\ue000"
"""Stands for one quoted content while steps work on the rest; a private character that no step touches."""

_WORD = r"[^\W\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"  # of a script with blanks, where apostrophes join
_QUOTED = re.compile(
    rf"{MASK}"
    r'|"(?<![0-9]")([^"]*)"'
    rf"|'(?<!{_WORD}')(?=[^\s'][^'])((?:[^'\"]|(?<={_WORD})'(?={_WORD}))*?[^\s'\"])'(?!{_WORD})"
)
_NAMING = (
    "named",
    "called",
    "known as",
    "name is",
    "titled",
    "名叫",
    "名为",
    "叫做",
    "叫作",
    "名字是",
    "名字叫",
    "外号",
)


def taken_out(text: str, *, fold_names: bool = True) -> tuple[str, list[str]]:
    """Return `text` with `MASK` for what stands in quotation marks, and the contents; names fold their case."""
    if '"' not in text and "'" not in text and MASK not in text:
        return text, []
    contents: list[str] = []
    folded = case(text) if fold_names else ""
    may_name = any(word in folded for word in _NAMING)

    def mask(match: re.Match[str]) -> str:
        if match[0] == MASK:
            contents.append(MASK)
            return MASK
        content = match[1] if match[1] is not None else match[2]
        named = may_name and _names(match.string[max(0, match.start() - 12) : match.start()])
        contents.append(case(content) if named else content)
        return f'"{MASK}"'

    return _QUOTED.sub(mask, text), contents


def _names(before: str) -> bool:
    return case(before.rstrip(" ,:")).endswith(_NAMING)


def put_back(text: str, contents: list[str]) -> str:
    """Undo `taken_out` on a text whose masks are all still there, in order."""
    if not contents:
        return text
    pieces = [""] * (2 * len(contents) + 1)
    pieces[::2], pieces[1::2] = text.split(MASK), contents
    return "".join(pieces)
