"""Tells what of a prompt the native models do not understand; plain dictionary look-ups, no torch.

A prompt is cut into phrases, the longest known one first. Known is what the training captions say (`words`); all else
is named, for a word of another world changes the video at best by chance. What the words say together is judged too:
two values of one attribute, numbers and negation mean nothing to these models. Chinese is cut at characters, and what
is unknown between known phrases counts as one word.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from serve_app.model.native.words import ATTRIBUTES, FILLERS
from serve_app.prompt.folding import CJK
from serve_app.prompt.words import english

MAX_WORDS = 10
"""Of each sentence."""
_MAX_CHARS = 20
_STOPS = r"""\s.,;:!?"()\[\]{}<>/\\|_*~=`^\-\xa1\xab\xb7\xbb\xbf\u2010-\u206f\u3001-\u3003\u3008-\u3020\uff01-\uff0f"""
_TOKEN = re.compile(rf"[{CJK}]|(?:(?![{CJK}])[^{_STOPS}])+")
_ONE_CHAR = re.compile(rf"[{CJK}]")
_DIGITS = re.compile(r"\d+(?:[.,]\d+)*")

_INERT = (
    "its, it's, that's, there's, are, be, by, into, onto, &, video, clip, animation, 视频, 动画, 着, 地, 和, 与, 是"
)
_GROUNDS = "background, backdrop, wall, 背景"
_ONE_OF = "一只, 一颗, 一块, 一条, 一团, 一枚, 一朵, 一片, 个"
_THINGS = ("shape", "object", "thing")
_MOVES = (
    "moves, moving, slides, sliding, glides, gliding, drifts, drifting, floats, floating, goes, going, travels, "
    "traveling, climbs, climbing, drops, dropping, 移动, 滑动"
)
"""Verbs that captions say with a direction, which may stand elsewhere: "moves slowly to the left"."""
_DIRECTIONS: Mapping[str, str] = {
    "left": "left, leftward, from right to left, right to left, 向左, 往左, 从右到左, 从右往左, 从右向左",
    "right": "right, rightward, from left to right, left to right, 向右, 往右, 从左到右, 从左往右, 从左向右",
    "up": "up, upward, from bottom to top, bottom to top, to the top, 向上, 往上, 从下到上, 从下往上, 从下向上",
    "down": "down, downward, from top to bottom, top to bottom, to the bottom, 向下, 往下, 从上到下, 从上往下, "
    "从上向下",
    "rotate": "clockwise, 顺时针",
}
_PLACES = "on the left, on the right, at the left, at the right"
"""Where things are is nothing that captions say."""
_NEGATIONS = (
    "not, no, non, never, without, neither, nor, none, nothing, except, cannot, 不, 不要, 不是, 没, 没有, 无, 非, 别, "
    "勿, 除了"
)
_NUMBERS = (
    "zero, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, twenty, hundred, thousand, dozen, "
    "both, pair, couple, several, many, multiple, some, few, 许多, 很多, 多个, 一些, 几, 一群, 一对, 一双, 无数, "
    + ", ".join(f"{number}{measure}" for number in "两二三四五六七八九十几" for measure in "个只颗块条团枚朵片")
)
_READ = ("LATIN", "CJK")
"""Scripts, as the names of their letters begin."""
_FOREIGN_WORDS = 2
"""So many words that no dictionary has, at least, are another language; one may be a name."""


@dataclass(frozen=True, slots=True)
class _Phrase:
    """Part of a prompt; kind: an attribute, `filler`, `ground`, `place`, `number`, `negation` or `unknown`.

    joined: whether nothing but blanks stands before it.
    """

    kind: str
    value: str
    text: str
    joined: bool

    @property
    def is_one_character(self) -> bool:
        return len(self.text) == 1 and _ONE_CHAR.match(self.text) is not None


def prompt_notice(prompt: str) -> tuple[str, ...]:
    """Return sentences on what of a normalised prompt the native models do not understand; empty when all is known."""
    phrases = _with_backgrounds(list(_phrases(prompt)))
    unknown = _unique(phrase.text for phrase in phrases if phrase.kind in ("unknown", "place"))
    sentences = [f"The model did not understand: {_listed(unknown)}."] if unknown else []
    sentences += _twofold(phrases)
    if numbers := _unique(phrase.text for phrase in phrases if phrase.kind == "number"):
        sentences.append(f"It shows one shape and cannot count: {_listed(numbers)}.")
    if negations := _unique(_negated(phrases)):
        sentences.append(f"It does not understand negation: {_listed(negations)}.")
    if _is_other_language(unknown, any(phrase.kind in ATTRIBUTES for phrase in phrases)):
        sentences.append("It reads English and Chinese only.")
    return tuple(sentences)


def _phrases(prompt: str) -> Iterator[_Phrase]:
    """Yield the longest known phrases in order; unknown Chinese beside each other is one."""
    tokens = [(match[0].lower(), match.start(), match.end()) for match in _TOKEN.finditer(prompt)]
    words = [word.strip("'") for word, _, _ in tokens]
    pending: _Phrase | None = None
    i = 0
    while i < len(tokens):
        length, kind, value = _longest(words, i)
        start, end = tokens[i][1], tokens[i + length - 1][2]
        before = prompt[tokens[i - 1][2] : start] if i else ","
        phrase = _Phrase(kind, value, prompt[start:end].strip("'"), not before.strip())
        i += length
        if pending is not None and _is_one_word(pending, phrase, before):
            pending = _Phrase("unknown", "", pending.text + phrase.text, pending.joined)
            continue
        if pending is not None and pending.text:
            yield pending
        pending = phrase
    if pending is not None and pending.text:
        yield pending


def _is_one_word(first: _Phrase, second: _Phrase, between: str) -> bool:
    """Tell whether Chinese characters are one unknown word: both, or one of them and a size or shape of one character.

    So 小猫 is no small shape, and 点心 no heart.
    """
    if between or "unknown" not in (first.kind, second.kind):
        return False
    return all(
        _ONE_CHAR.match(each.text) and (each.kind == "unknown" or (each.is_one_character and each.value))
        for each in (first, second)
    )


def _longest(words: Sequence[str], start: int) -> tuple[int, str, str]:
    table, longest = _table()
    for length in range(min(longest.get(words[start], 0), len(words) - start), 0, -1):
        found = table.get(tuple(words[start : start + length]))
        if found is not None:
            return length, *found
    word = words[start]
    if word.endswith("n't"):
        return 1, "negation", ""
    if not word or word == "1":
        return 1, "filler", ""
    return 1, "number" if _DIGITS.fullmatch(word) else "unknown", ""


@functools.cache
def _table() -> tuple[Mapping[tuple[str, ...], tuple[str, str]], Mapping[str, int]]:
    """Return what every phrase means, by its tokens, and the length of the longest that begins with a token."""
    table: dict[tuple[str, ...], tuple[str, str]] = {}

    def add(phrases: str, kind: str, value: str = "") -> None:
        for phrase in phrases.split(", "):
            table[tuple(_TOKEN.findall(phrase))] = (kind, value)

    for kind, phrases in {
        "filler": f"{_INERT}, {_ONE_OF}, {_MOVES}, {FILLERS}", "ground": _GROUNDS, "place": _PLACES,
        "number": _NUMBERS, "negation": _NEGATIONS,
    }.items():  # fmt: skip
        add(phrases, kind)
    for value, phrases in _DIRECTIONS.items():
        add(phrases, "motion", value)
    for shape in ", ".join(ATTRIBUTES["shape"].values()).split(", "):
        if shape.isascii():
            add(f"{shape}{'es' if shape.endswith(('x', 's')) else 's'}", "number")
    for kind, values in ATTRIBUTES.items():
        for value, phrases in values.items():
            add(phrases, kind, value)
    for phrase, (kind, value) in list(table.items()):
        if kind == "background" and "".join(phrase[-2:]) == "背景":
            table[(*phrase[:-2], "的", "背", "景")] = (kind, value)
    longest: dict[str, int] = {}
    for phrase in table:
        longest[phrase[0]] = max(longest.get(phrase[0], 0), len(phrase))
    return table, longest


def _with_backgrounds(phrases: list[_Phrase]) -> list[_Phrase]:
    """Return the phrases with colours and backgrounds unknown where the other is meant: a white star, a red wall."""
    judged = list(phrases)
    for i, phrase in enumerate(phrases):
        if phrase.kind not in ("color", "background") or (phrase.kind == "background" and _ONE_CHAR.match(phrase.text)):
            continue
        ground = _ground_after(phrases, i)
        named = ground is not None or _stands_below(phrases, i)
        if named != (phrase.kind == "background"):
            text = phrase.text if ground is None else phrase.text + _gap(phrase) + ground.text
            judged[i] = _Phrase("unknown", "", text, phrase.joined)
    return judged


def _gap(phrase: _Phrase) -> str:
    return "" if _ONE_CHAR.match(phrase.text) else " "


def _ground_after(phrases: Sequence[_Phrase], i: int) -> _Phrase | None:
    following = [each for each in phrases[i + 1 : i + 3] if each.text != "的"][:1]
    return following[0] if following and following[0].kind == "ground" and following[0].joined else None


def _stands_below(phrases: Sequence[_Phrase], i: int) -> bool:
    """Tell whether a colour is what something is on: "on white", "in the sky", but not "on a white square"."""
    after = phrases[i + 1] if i + 1 < len(phrases) else None
    if after is not None and after.joined and (after.kind in ("shape", "size", "color") or after.text in _THINGS):
        return False
    before = [each.text.lower() for each in phrases[max(0, i - 2) : i]]
    has_article = before[-1:] in (["a"], ["an"], ["the"])
    preposition = before[-2:-1] if has_article else before[-1:]
    return preposition in (["on"], ["over"], ["against"]) or (has_article and preposition == ["in"])


def _twofold(phrases: Sequence[_Phrase]) -> Iterator[str]:
    for kind in ATTRIBUTES:
        named: dict[str, str] = {}
        for phrase in phrases:
            if phrase.kind == kind:
                named.setdefault(phrase.value, phrase.text)
        if len(named) > 1:
            yield f"It shows one {kind}; {_listed(list(named.values()), last=' and ')} were named."


def _negated(phrases: Sequence[_Phrase]) -> Iterator[str]:
    """Yield each negation with what it is about."""
    for i, phrase in enumerate(phrases):
        if phrase.kind == "negation":
            about = itertools.takewhile(lambda each: each.joined, phrases[i + 1 : i + 4])
            yield phrase.text + "".join(_gap(each) + each.text for each in _to_first_content(about))


def _to_first_content(phrases: Iterable[_Phrase]) -> Iterator[_Phrase]:
    for phrase in phrases:
        yield phrase
        if phrase.kind != "filler":
            return


def _is_other_language(unknown: Sequence[str], is_understood_in_part: bool) -> bool:
    """Tell another script by its letters, and another language in Latin ones by what no English dictionary has."""
    letters = {char for word in unknown for char in word if char > "\x7f" and char.isalpha()}
    if any(not unicodedata.name(char, "").startswith(_READ) for char in letters):
        return True
    latin = [word.lower() for word in unknown if word.isalpha() and not _ONE_CHAR.match(word)]
    if is_understood_in_part or len(latin) < _FOREIGN_WORDS:
        return False
    foreign = [word for word in latin if word not in english()]
    return len(foreign) >= _FOREIGN_WORDS and 2 * len(foreign) >= len(latin)


def _unique(words: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(words))


def _listed(words: Sequence[str], last: str = ", ") -> str:
    """Return words in one line, cut where they are long or many."""
    shown = [word if len(word) <= _MAX_CHARS else f"{word[:_MAX_CHARS]}…" for word in words[:MAX_WORDS]]
    if len(words) > MAX_WORDS:
        return f"{', '.join(shown)} and {len(words) - MAX_WORDS} more"
    return ", ".join(shown[:-1]) + last + shown[-1] if len(shown) > 1 else shown[0]
