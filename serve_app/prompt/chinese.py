"""Chinese: plain punctuation, no blanks between Chinese and Latin, traditional characters as simplified ones.

Conversion is OpenCC's `t2s` (the package OpenCC, by the project itself: alive, Apache-2.0, a 2.4 MB wheel with its
tables, no network; 12 ms and 5 MB to load, 3 us a prompt, linear: 84,000 characters in 4 ms). The ports were judged
too: opencc-purepy takes 80 ms and 30 MB to load and twice the time, opencc-python-reimplemented is from 2023. Text
with kana or hangul is left alone: to simplify Japanese would be to misspell it. Numbers and measure words are
characters like any other here, and no table touches them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from serve_app.prompt.folding import CJK
from serve_app.prompt.tables import digest_of, folder_of

_TABLES = folder_of("opencc") / "clib" / "share" / "opencc"

_PLAIN = {"、": ",", "，": ",", "；": ";", "：": ":", "！": "!", "？": "?", "〜": "~", "【": "[", "】": "]", "。": "."}
_MARK = re.compile(f"[{''.join(_PLAIN)}]")
_STOP = re.compile("。(?=[0-9])")
_LATIN = "A-Za-z0-9\u00c0-\u024f"
_BESIDE = "\"'\ue000"
_BLANK = re.compile(f" (?:(?<=[{CJK}] )(?=[{_LATIN}{_BESIDE}])|(?<=[{_LATIN}{_BESIDE}] )(?=[{CJK}]))")
_WITHOUT_BLANKS = re.compile(f"[{CJK}]")
_CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_JAPANESE_OR_KOREAN = re.compile("[\u3040-\u30ff\u31f0-\u31ff\uac00-\ud7af\u1100-\u11ff]")


def punctuation(text: str) -> str:
    """Write Chinese punctuation as its plain form; a full stop before a digit stays clear of it (3。5 is not 3.5)."""
    if text.isascii():
        return text
    return _MARK.sub(lambda match: _PLAIN[match[0]], _STOP.sub(". ", text))


def spacing(text: str) -> str:
    """Drop blanks between Chinese and Latin letters, digits or quotes; between two Chinese words they separate."""
    return text if text.isascii() or not _WITHOUT_BLANKS.search(text) else _BLANK.sub("", text)


def simplified(text: str) -> str:
    """Write traditional characters as simplified ones, by words where a character alone is ambiguous."""
    if text.isascii() or not _CHINESE.search(text) or _JAPANESE_OR_KOREAN.search(text):
        return text
    return _converter()(text)


@functools.cache
def _converter() -> Callable[[str], str]:
    import opencc

    convert: Callable[[str], str] = opencc.OpenCC(str(_TABLES / "t2s.json")).convert  # a bare name: first ./t2s.json
    return convert


@functools.cache
def digest() -> str:
    """Identify the tables behind `simplified`."""
    tables = [_TABLES / "t2s.json", *sorted(_TABLES.glob("TS*.ocd2")), _TABLES / "CJK_Compatibility_Ideographs.ocd2"]
    return digest_of(*tables)
