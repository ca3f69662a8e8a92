"""Compatibility characters: which are another way to type the same text, and how that text is set.

Unicode calls 3,700 characters compatible with others and NFKC writes all of them as those, which makes "10⁻³" of
"10-3" and a Hangul syllable of two single letters. Here every class is judged by itself (docs/prompt-normalisation.md
has the table): what differs in width, font, position in the word or on the line, or was one key for several letters
folds; what says something by its form (a circle, a raised letter, a symbol of its own) stays. Raised and lowered
numbers keep that they are (`10^-3`, `x_1`), fractions and units stay clear of letters and digits beside them.
"""

from __future__ import annotations

import functools
import re
import unicodedata

_TAGS = "wide narrow small vertical noBreak font fraction compat initial medial final isolated"
_FOLDED_TAGS = frozenset(f"<{tag}>" for tag in _TAGS.split())
_RAISED = "\u00b2\u00b3\u00b9\u2070\u2071\u2074-\u207f"
_LOWERED = "\u2080-\u208e\u2090-\u209c"
_UNITS = "\u32cc-\u32cf\u32ff\u3300-\u33ff"
_SET = re.compile(f"[{_RAISED}{_LOWERED}{_UNITS}]")  # folded, though their tags are not

_DOUBLE_STRUCK = (
    "\u2102\u210d\u2115\u2119\u211a\u211d\u2124\u213c-\u2140\u2145-\u2149\U0001d538-\U0001d56b\U0001d7d8-\U0001d7e1"
)
_ARABIC_MATHEMATICS, _DIGITS_OF_A_DISPLAY = "\U0001ee00-\U0001eeff", "\U0001fbf0-\U0001fbf9"
_LETTERLIKE = "\u2100\u2101\u2105-\u2107\u210f\u2116\u2121\u2135-\u2139\u213b\u20a8"  # such as No, TEL, alef, Rs
_SINGLE_HANGUL = "\u3131-\u318e"  # letters that stand alone: NFKC joins them to syllables
_SYMBOLS = re.compile(f"[{_DOUBLE_STRUCK}{_ARABIC_MATHEMATICS}{_DIGITS_OF_A_DISPLAY}{_LETTERLIKE}{_SINGLE_HANGUL}]")

_BUILT_FRACTION = re.compile("([⁰¹²³⁴-⁹]+)[\u2044/]([₀-₉]+)")
_FRACTION = "\u00bc-\u00be\u2150-\u215f\u2189"
_NUMERATOR_ONE = "\u215f"
_CLEAR = f"{_UNITS}\u2103\u2109\u2160-\u217f\u2474-\u249b\u3200-\u321e\u3220-\u3243\u32c0-\u32cb\U0001f100-\U0001f10a"
_ROMAN = re.compile("[\u2160-\u217f]")
_AMBIGUOUS_BEFORE = re.compile(r"[\w./,^)\]]")
_AMBIGUOUS_AFTER = re.compile(r"[^\W_]|[./,^](?=[0-9])|\^")
_END = 0x1FC00
"""No character from here on folds; to ask all of Unicode takes 0.2 s."""

_TEN = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉", "01234567890123456789")


def folds(char: str) -> bool:
    """Tell whether a compatibility character is another way to type its decomposition."""
    tag, _, rest = unicodedata.decomposition(char).partition(" ")
    if not tag.startswith("<"):
        return False
    if _SET.match(char):
        return True
    is_spacing_mark = rest.startswith("0020 ")
    return tag in _FOLDED_TAGS and not is_spacing_mark and not _SYMBOLS.match(char)


def folded(text: str) -> str:
    """Write every character that folds as what it is another form of; the result is not composed yet."""
    if _BUILT_FRACTION.search(text):
        text = _BUILT_FRACTION.sub(_built_fraction, text)
    return _pattern().sub(_written, text)


@functools.cache
def _pattern() -> re.Pattern[str]:
    """Match one character that folds, or a run of raised or lowered ones."""
    others = "".join(re.escape(char) for char in map(chr, range(0xA0, _END)) if folds(char))
    return re.compile(f"[{_RAISED}]+|[{_LOWERED}]+|[{others}]")


def _written(match: re.Match[str]) -> str:
    run, text = match[0], match.string
    kind = _kind(run[0])
    if kind == "plain":
        return _plain(run)
    before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 2]
    return _in_context(kind, run, before, after)


@functools.lru_cache(maxsize=16_384)
def _in_context(kind: str, run: str, before: str, after: str) -> str:
    if kind == "raised":
        return _set_apart(f"^{_plain(run)}", "", after)
    if kind == "lowered":
        return _lowered(_plain(run), before, after)
    if kind == "fraction":
        return _set_apart(_plain(run), before, "" if run == _NUMERATOR_ONE else after)
    return _kept_clear(run, before, after[:1])


@functools.lru_cache(maxsize=8_192)
def _kind(char: str) -> str:
    sets = {"raised": _RAISED, "lowered": _LOWERED, "fraction": _FRACTION, "clear": _CLEAR}
    return next((kind for kind, chars in sets.items() if re.match(f"[{chars}]", char)), "plain")


def _lowered(number: str, before: str, after: str) -> str:
    """Write the number of a formula beside its letter, as people type it: H2O; others as what they are: 10_2."""
    if number.isdigit() and (before.isalpha() or before in (")", "]")):
        return _set_apart(number, "", "" if after[:1].isalpha() else after)
    return _set_apart(f"_{number}", "", after)


def _built_fraction(match: re.Match[str]) -> str:
    before, after = match.string[match.start() - 1 : match.start()], match.string[match.end() : match.end() + 2]
    return _set_apart(f"{match[1].translate(_TEN)}/{match[2].translate(_TEN)}", before, after)


def _set_apart(written: str, before: str, after: str) -> str:
    """Put blanks where what stands beside a number would become a part of it."""
    left = " " if _AMBIGUOUS_BEFORE.match(before) else ""
    return f"{left}{written}{' ' if _AMBIGUOUS_AFTER.match(after) else ''}"


def _kept_clear(run: str, before: str, after: str) -> str:
    """Put blanks between a unit or a numeral and the letters or digits that it would run into."""
    written = _plain(run)
    one, other = (unicodedata.normalize("NFKC", each) for each in (before, after))
    left = _runs_into(one[-1:], written[0]) and one[-1:].isdigit() == written[0].isdigit()
    right = _runs_into(written[-1], other[:1]) or (written[-1] in ".," and other[:1].isdigit())
    if _ROMAN.match(run):
        left, right = left and not _ROMAN.match(before), right and not _ROMAN.match(after)
    return f"{' ' * left}{written}{' ' * right}"


def _runs_into(one: str, other: str) -> bool:
    return one.isascii() and one.isalnum() and other.isascii() and other.isalnum()


@functools.lru_cache(maxsize=8_192)
def _plain(run: str) -> str:
    """Return what `run` is another form of, again with what folds in it folded."""
    if _kind(run[0]) in ("raised", "lowered"):
        return unicodedata.normalize("NFKC", run)
    return folded("".join(chr(int(code, 16)) for code in unicodedata.decomposition(run).split()[1:]))
