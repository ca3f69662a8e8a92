"""Cache-Status as RFC 9211 has it: a structured list (RFC 8941) whose member is the cache and whose parameters fit."""

import re

import pytest

from serve_app.api.http.cache_status import cache_status
from serve_app.core import Outcome

TOKEN = r"[A-Za-z*][A-Za-z0-9!#$%&'*+\-.^_`|~:/]*"
PARAMETER = re.compile(rf"; *([a-z*][a-z0-9_\-.*]*)(?:=({TOKEN}))?")


def parsed(field: str) -> tuple[str, dict[str, str | bool]]:
    """Read one list member of tokens (RFC 8941, section 4.2); fails on anything left over."""
    name = re.match(TOKEN, field)
    assert name is not None
    at, parameters = name.end(), dict[str, str | bool]()
    while at < len(field):
        parameter = PARAMETER.match(field, at)
        assert parameter is not None, field[at:]
        parameters[parameter[1]] = parameter[2] or True
        at = parameter.end()
    return name[0], parameters


@pytest.mark.parametrize("outcome", [*Outcome, None], ids=str)
@pytest.mark.parametrize("stored", [True, False])
def test_it_is_a_structured_field(outcome: Outcome | None, stored: bool) -> None:
    """Each outcome gives one member `encore` with `hit` or `fwd`, never both, and truthful parameters."""
    name, parameters = parsed(cache_status(outcome, stored=stored))
    assert name == "encore"
    assert ("hit" in parameters) != ("fwd" in parameters), "RFC 9211, section 2.2: fwd only when it was no hit"
    assert ("hit" in parameters) == (outcome is not None and outcome.is_hit)
    assert parameters.get("collapsed", False) == (outcome is Outcome.JOINED)
    assert parameters.get("stored", False) == (stored and outcome is not None and not outcome.is_hit)
    assert parameters.get("detail") == (outcome if outcome not in (None, Outcome.JOINED, Outcome.RENDERED) else None)


def test_the_words_of_the_readme() -> None:
    """The three forms the documents promise."""
    assert cache_status(Outcome.L1) == "encore; hit; detail=l1"
    assert cache_status(Outcome.RENDERED) == "encore; fwd=miss; stored"
    assert cache_status(Outcome.JOINED) == "encore; fwd=miss; collapsed; stored"
