"""British spelling as American, inflected forms included: "colour" and "color" are one prompt.

The list is breame's (Apache-2.0, 1,730 pairs with their inflections, plain data of 110 kB, offline; finished rather
than maintained: its last release is from 2021, and uwotm8, which is maintained, uses it). The newer `eng` was judged
and left out: it also swaps words ("film" for "movie", "quarter" for "fourth", "sleigh" for "sled"). Of breame's pairs
those in `_KEPT` are not used: they change a unit, a number, a tense or a meaning, or turn a word that Americans write
that way into one they hardly know. Words that are missing cost a render, never a wrong video.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from serve_app.prompt.tables import digest_of, folder_of

_KEPT_WORDS = (
    # a tonne is no ton; a groyne no groin, a philtre no filter, a bevvy no bevy, a disc seldom a disk
    "tonne tonnes groyne groynes philtre philtres bevvy bevvies disc discs videodisc videodiscs "
    # number, tense and kind of word: two analyses are not one who analyzes
    "snowploughs pummelled pummelling tranquilly analyses paralyses "
    # written this way in American English too (frequencies in pyspellchecker's list)
    "aesthetic aesthetically aesthetics archaeological archaeologically archaeologist archaeologists archaeology "
    "axe battleaxe buses minibuses busing cancellation cancellations catalogued dialogue dialogues draughtboard "
    "draughtboards epilogue epilogues exorcise exorcised exorcises exorcising fillet filleted filleting fillets gases "
    "gauge gauged gauges gauging glamour monologue monologues prologue prologues woollies woolly worshipped worshipper "
    "worshipping"
)
_KEPT = frozenset(_KEPT_WORDS.split())
_WORD = re.compile(r"[A-Za-z]{3,}")
_FILE = folder_of("breame") / "data" / "spelling_constants.py"


@functools.cache
def table() -> Mapping[str, str]:
    """Return British to American, lower case; no target is a source."""
    from breame.data.spelling_constants import BRITISH_ENGLISH_SPELLINGS

    return {british: american for british, american in BRITISH_ENGLISH_SPELLINGS.items() if british not in _KEPT}


def american(text: str) -> str:
    """Write every word of `text` in its American spelling; case stays as it is."""
    words = table()
    if words.keys().isdisjoint(_WORD.findall(text.lower())):
        return text
    return _WORD.sub(lambda match: like(match[0], words.get(match[0].lower(), match[0].lower())), text)


def like(typed: str, word: str) -> str:
    """Return `word` in the case of `typed`: lower, Title or UPPER; mixed case is left as it was typed."""
    if typed.islower():
        return word
    if typed.isupper():
        return word.upper()
    return word.capitalize() if typed.istitle() else typed


@functools.cache
def digest() -> str:
    """Identify the table."""
    return digest_of(_FILE)
