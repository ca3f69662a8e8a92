"""Folding of form: Unicode, what is invisible, quotes, dashes, case, blanks and punctuation, never a meaning.

Each step is a total function on strings, linear in their length, and costs little where there is nothing to do. NFC as
in UAX #15, and of NFKC's foldings those that keep the meaning (`compatibility`). Case is folded letter by letter (the
Unicode Standard's simple folding), because the full one writes ß as ss and Maße is not Masse. Joiners stay inside
emoji, because a family without them is three people, and in scripts that spell with them (Persian, Indic ones); tags
stay in flags, because without them Scotland's is a black one. docs/prompt-normalisation.md has every class in a table.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable
from typing import Literal

from serve_app.prompt import compatibility

Step = Callable[[str], str]

CJK = "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Characters written without blanks between words (ideographs, kana), as the inside of a regular expression's set."""

_MAYBE_MARKS = re.compile("[\u0300-\u309a\ua66f-\uabff\ufb1e-\ufe2f\U00010000-\U0001efff]{32,}")

_APOSTROPHES = re.compile("[\u00b4\u02bc`]")

_SEPARATORS = "\t-\r\x1c-\x1f\x85\u2028\u2029\u2800"
_SELECTORS = "\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef"
_INVISIBLE = re.compile(
    f"[{_SEPARATORS}\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5"
    f"{_SELECTORS}\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f]+"
)
_SEPARATOR = re.compile(f"[{_SEPARATORS}]")
_JOINERS = ("\u200d", "\ufe0f\u200d")
_JOINER = re.compile("[\u200c\u200d]")
_SPELT_WITH_JOINERS = re.compile(
    "[\u0600-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u18af\u1a20-\u1aaf\u1b00-\u1bff\ua8e0-\ua8ff]"
)
_FLAG = re.compile("[\U000e0020-\U000e007e]{1,16}\U000e007f")

_DOUBLE_QUOTES = re.compile("[“”„‟«»「」『』﹁﹂﹃﹄〝〞〟＂]")
_SINGLE_QUOTES = re.compile("[‘’‚‛‹›＇]")
_HYPHENS = str.maketrans(dict.fromkeys("\u2010\u2011\u2212\ufe63\uff0d", "-"))
_EN_DASH = re.compile(r"(?<=\w)[\u2012\u2013](?=\w)")
_DASH = re.compile(r"(?: ?(?:[\u2012-\u2015\u2e3a\u2e3b]|--)[\u2012-\u2015\u2e3a\u2e3b\-]*)+ ?")
_DASHES = re.compile("[\u2010-\u2015\u2212\u2e3a\u2e3b\ufe63\uff0d]|--")

_PUNCTUATION = re.compile(r"[.,;:!?]")
_REPEATED = re.compile(r"([.,;:!?])(?:\s*\1)+")
_BLANK_BEFORE = re.compile(r" +(?=[,;!?]|\.(?![0-9\w]))")
_COMMA = re.compile(rf"([,;]) ?(?=[^\W\d_])|([,;])(?<=[^\W\d_][,;]) ?(?=\d)|([,;:!?.]) (?<=[{CJK}][,;:!?.] )(?=\S)")
_CJK = re.compile(f"[{CJK}]")
_EDGE = " .,;:!?\N{IDEOGRAPHIC COMMA}\N{IDEOGRAPHIC FULL STOP}"


def unicode(text: str) -> str:
    """Return NFC with plain apostrophes and fraction slashes, and folded what is only typed in another way."""
    if text.isascii():
        return text.replace("`", "'") if "`" in text else text
    text = _APOSTROPHES.sub("'", text)
    if not _is_normalized("NFKC", text):
        text = _compose(compatibility.folded(text))
    return text.replace("\u2044", "/")


_SHORT = 2_000  # characters; a run of marks this long costs CPython's NFC (sorting by insertion) about a millisecond


def _is_normalized(form: Literal["NFC", "NFKC"], text: str) -> bool:
    return (len(text) <= _SHORT or not _MAYBE_MARKS.search(text)) and unicodedata.is_normalized(form, text)


def _compose(text: str) -> str:
    if _is_normalized("NFC", text):
        return text
    if len(text) > _SHORT and _MAYBE_MARKS.search(text):
        text = _marks().sub(_in_canonical_order, text)
    return unicodedata.normalize("NFC", text)


@functools.cache
def _marks() -> re.Pattern[str]:
    """Return the expression for long runs of combining marks; finding all marks takes 10 ms, so only when needed."""
    marks = "".join(char for char in map(chr, range(0x300, 0x1F000)) if unicodedata.combining(char))
    return re.compile(f"[{marks}]{{32,}}")


def _in_canonical_order(match: re.Match[str]) -> str:
    """Sort a run of combining marks as NFC will: CPython does that by insertion, quadratic in the run's length."""
    return "".join(sorted(match[0], key=unicodedata.combining))


def invisible(text: str) -> str:
    """Drop what does not show: format, control, variation characters. Control characters that separate are blanks."""
    if text.isascii() and text.isprintable():
        return text
    return _INVISIBLE.sub(_visible, text)


def _visible(match: re.Match[str]) -> str:
    run, before, after = (
        match[0],
        match.string[match.start() - 1 : match.start()],
        match.string[match.end() : match.end() + 1],
    )
    if before == "\N{WAVING BLACK FLAG}" and _FLAG.fullmatch(run):
        return run
    if run in _JOINERS and _is_emoji(before) and _is_emoji(after):
        return "\u200d"
    if _SEPARATOR.search(run):
        return " "
    joiner = _JOINER.search(run)
    return joiner[0] if joiner and _SPELT_WITH_JOINERS.match(before) and _SPELT_WITH_JOINERS.match(after) else ""


def _is_emoji(char: str) -> bool:
    return "\u2190" <= char <= "\u2bff" or "\U0001f000" <= char <= "\U0001faff"


def quotes(text: str) -> str:
    """Write every style of quotation mark as its plain form."""
    return text if text.isascii() else _SINGLE_QUOTES.sub("'", _DOUBLE_QUOTES.sub('"', text))


def dashes(text: str) -> str:
    """Write hyphens and minus signs as `-`, dashes that separate as ` - `; a dash between digits or words is `-`."""
    if not _DASHES.search(text):
        return text
    return _DASH.sub(" - ", _EN_DASH.sub("-", text.translate(_HYPHENS)))


def case(text: str) -> str:
    """Fold case letter by letter, the final sigma too, and compose again: İ is taken apart."""
    folded = text.lower().replace("ς", "σ")
    return folded if folded == text or folded.isascii() else _compose(folded)


def blanks(text: str) -> str:
    """Return `text` with single blanks, and none at its ends."""
    return " ".join(text.split())


def punctuation(text: str) -> str:
    """Collapse repeated marks; set commas and stops as English does, and without blanks beside Chinese.

    A point or comma between or before digits is a number's and stays as it is.
    """
    if not _PUNCTUATION.search(text):
        return text
    text = _BLANK_BEFORE.sub("", _REPEATED.sub(_once, text))
    return _COMMA.sub(_set_comma, text)


def _once(match: re.Match[str]) -> str:
    """Return a repeated mark once; a point of it that begins a number stays the number's, other points stay clear."""
    run, mark = match[0], match[1]
    if mark != "." or not match.string[match.end() : match.end() + 1].isdigit():
        return mark
    return ". ." if run[-2].isspace() else ". "


def _set_comma(match: re.Match[str]) -> str:
    text, start, end = match.string, match.start(), match.end()
    if match[3]:
        return match[3] if not text[end].isdigit() or match[3] in ";!?" else match[0]
    beside_cjk = _CJK.match(text[end]) or (start > 0 and _CJK.match(text[start - 1]))
    return match[0][0] if beside_cjk else f"{match[0][0]} "


def edges(text: str) -> str:
    """Strip punctuation, dashes that separate nothing, and stray or all-embracing quotes; inner quotes stay."""
    text = _stripped(text)
    inner = text[1:-1]
    for quote in "\"'":
        if len(text) > 1 and text[0] == text[-1] == quote and quote not in inner:
            return _stripped(inner)
    if text.count('"') % 2:
        inches = text[-2:-1].isdigit()  # a 55" is no stray quote
        text = text.removeprefix('"') if text.startswith('"') or inches else text.removesuffix('"')
    return _stripped(text)


def _stripped(text: str) -> str:
    """Strip punctuation from both ends, but not the point of a number: .5 is not 5."""
    text = text.rstrip(_EDGE)
    left = text.lstrip(_EDGE)
    before = text[: len(text) - len(left)]
    if left[:1].isdigit() and before.endswith(".") and not before.endswith(".."):
        left = f".{left}"
    return _without_edge_dashes(left) if "-" in (left[:1], left[-1:]) else left


def _without_edge_dashes(text: str) -> str:
    """Strip dashes with a blank between them and the text; numbers keep what may be their sign."""
    end = text.rstrip(" -")
    if not end:
        return ""
    gap = text.find(" ", len(end))
    text = text if gap < 0 else text[:gap]
    start = len(text) - len(text.lstrip(" -"))
    return text if text[start].isdigit() else text[text.rfind(" ", 0, start) + 1 :]
