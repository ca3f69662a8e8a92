"""The English that is known, and how often the words of it are said.

Known is every word of symspellpy's dictionary (82,834 words, British and American, from SCOWL and Google Books; MIT,
released in 2026), of pyspellchecker's (160,572, American, from film subtitles; MIT, released in 2026), of breame's
pairs, and of the 30,000 most frequent of Wikipedia (zxcvbn's list; MIT, released in 2025), which has the loanwords and
foreign things that the dictionaries lack ("shojo"): the more is known, the less is taken for a mistake. How often a
word is said comes from the subtitles: only a frequent one is likely to be the one that was meant. Only the packages'
data is read (a `.txt` of 1.3 MB, a `.json.gz` of 0.65 MB, one line of a `.py`), not their code. Loading takes 0.2 s
and 27 MB, once a process, at the first prompt or at the start of a server.
"""

from __future__ import annotations

import functools
import gzip
import json
import re
from collections.abc import Mapping

from serve_app.prompt import spelling
from serve_app.prompt.tables import digest_of, folder_of

_SYMSPELL = folder_of("symspellpy") / "frequency_dictionary_en_82_765.txt"
_SUBTITLES = folder_of("spellchecker") / "resources" / "en.json.gz"
_WIKIPEDIA = folder_of("zxcvbn") / "frequency_lists.py"

COMMON = 500
"""Said so often in the subtitles, a word is common: rarer ones are no likely meaning."""

_PLAIN_LINE = re.compile("^[a-z]+(?= )", re.MULTILINE)
_LIST = re.compile(r'^ *"(\w+)": "([^"]+)"', re.MULTILINE)


@functools.cache
def english() -> Mapping[str, int]:
    """Return every known word of plain lower-case letters, and how often the subtitles say it."""
    known = dict.fromkeys(_PLAIN_LINE.findall(_SYMSPELL.read_text("utf-8-sig")), 0)
    known.update(dict.fromkeys([*spelling.table(), *spelling.table().values()], 0))
    known.update(dict.fromkeys(filter(_is_plain, frequency_lists()["english_wikipedia"]), 0))
    counts: dict[str, int] = json.loads(gzip.decompress(_SUBTITLES.read_bytes()))
    known.update((word, count) for word, count in counts.items() if _is_plain(word))
    return known


def frequency_lists() -> dict[str, list[str]]:
    """Return zxcvbn's lists of words and names by their name, most frequent first."""
    return {name: words.split(",") for name, words in _LIST.findall(_WIKIPEDIA.read_text("utf-8"))}


def _is_plain(word: str) -> bool:
    return word.isascii() and word.isalpha() and word.islower()


@functools.cache
def digest() -> str:
    """Identify the dictionaries."""
    return digest_of(_SYMSPELL, _SUBTITLES, _WIKIPEDIA)
