"""Known names: of many cultures, read as data, and never taken for a typing mistake however they are written."""

from __future__ import annotations

import subprocess
import sys

import pytest

from serve_app.core import PromptRules
from serve_app.prompt import names
from serve_app.prompt.prompt import Normaliser

NORMALISER = Normaliser(PromptRules())


def test_names_of_many_cultures_are_known() -> None:
    """Surnames and first names from Europe, Asia, Africa and the Americas."""
    known = names.known()
    assert len(known) > 40_000
    assert known >= {
        "petrov",
        "mehta",
        "donati",
        "nguyen",
        "okafor",
        "yilmaz",
        "kowalski",
        "haddad",
        "suzuki",
        "dlamini",
    }
    assert known >= {"gonzález", "søren", "priya", "mohammed", "anastasia", "jin"}


@pytest.mark.parametrize(
    "form", ["a portrait of {} in the rain", "{} walks in the rain", "A Portrait Of {} In The Rain"]
)
def test_no_known_name_is_corrected(form: str) -> None:
    """One name in twenty of the list, as written and in lower case: none changes."""
    for name in sorted(names.listed())[::20]:
        for written in (name, name.lower()):
            assert NORMALISER.trace(form.format(written)).corrected == (), written


def test_reading_names_runs_none_of_their_code() -> None:
    """Faker is read, not imported: its modules take a second and 68 MB."""
    code = "import sys; from serve_app.prompt import names; names.known(); print('faker' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
