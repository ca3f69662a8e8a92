"""The English that is known, and the part of it that is common.

Known is every word of symspellpy's dictionary (82,834 words, British and American, from SCOWL and Google Books; MIT,
released in 2026), of pyspellchecker's (160,572, American, from film subtitles, so with names; MIT, released in 2026)
and of breame's pairs: the more is known, the less is taken for a mistake. Common is what the subtitles have 500 times:
only such a word is likely to be the one that was meant. Only the packages' data is read (a `.txt` of 1.3 MB, a
`.json.gz` of 0.65 MB), not their code. The union has 130,000 words of plain letters; loading takes 0.15 s and 25 MB,
once a process, at the first prompt or at the start of a server.
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


_COMMON = 500
_PLAIN_LINE = re.compile("^[a-z]+(?= )", re.MULTILINE)


@functools.cache
def english() -> Mapping[str, bool]:
    """Return every known word of plain lower-case letters, and whether it is common."""
    known = dict.fromkeys(_PLAIN_LINE.findall(_SYMSPELL.read_text("utf-8-sig")), False)
    known.update(dict.fromkeys([*spelling.table(), *spelling.table().values()], False))
    counts: dict[str, int] = json.loads(gzip.decompress(_SUBTITLES.read_bytes()))
    known.update((word, count >= _COMMON) for word, count in counts.items() if word.isascii() and word.isalpha())
    return known


@functools.cache
def digest() -> str:
    """Identify the dictionaries."""
    return digest_of(_SYMSPELL, _SUBTITLES)
