"""Names that are known: people are called what no dictionary has, and a name is no typing mistake.

First names and surnames of some eighty countries from Faker (MIT, released every few weeks) and the most frequent of
the United States' census from zxcvbn (MIT), in Latin letters: 60,000 names. Read is the text of Faker's modules, not
their code: importing all of them takes 1 s and 68 MB, finding the quoted names in them 0.1 s and 5 MB.
"""

from __future__ import annotations

import functools
import re

from serve_app.prompt import words
from serve_app.prompt.tables import digest_of, folder_of

_FILES = sorted((folder_of("faker") / "providers" / "person").glob("*/__init__.py"))
_QUOTED = re.compile(r"""(["'])((?:(?!\1)[^{}\n])+)\1""")
_NAME = re.compile(r"[^\W\d_]{2,}")
_CENSUS = ("surnames", "female_names", "male_names")


@functools.cache
def known() -> frozenset[str]:
    """Return every known name of Latin letters, lower case; of a name of several words, each."""
    lists = words.frequency_lists()
    lower = {name.lower() for name in listed()}
    capitals = {name.replace("ß", "ss") for name in lower}  # as a prompt in capitals has them
    return frozenset(lower | capitals | {name for each in _CENSUS for name in lists[each]})


def listed() -> set[str]:
    """Return Faker's names as they are written."""
    found: set[str] = set()
    for file in _FILES:
        quoted = (match[2] for match in _QUOTED.finditer(file.read_text("utf-8")))
        found.update(name for text in quoted for name in _NAME.findall(text) if _is_written_as_name(name))
    return found


def _is_written_as_name(text: str) -> bool:
    return text[0].isupper() and not text.isupper() and all(letter < "\u0250" for letter in text)


def digest() -> str:
    """Identify the lists; the census' is in the dictionaries' digest."""
    return digest_of(*_FILES)
