"""A server that is busy or away is waited for by commands that have begun something there."""

from __future__ import annotations

import pytest

from serve_app.cli import retry as module
from serve_app.cli.retry import patient
from serve_app.errors import Busy, EncoreError, NotFound, Unavailable


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made."""
    rests: list[float] = []
    monkeypatch.setattr(module.time, "sleep", rests.append)
    return rests


def refused(*errors: EncoreError) -> list[EncoreError]:
    return [*errors]


def asked(refusals: list[EncoreError], retry_after: float | None = None) -> str:
    def call() -> str:
        if refusals:
            raise refusals.pop(0)
        return "done"

    return patient(call, retry_after)


def test_a_busy_server_is_waited_for(rests: list[float]) -> None:
    """A 429 is asked again after its Retry-After; one that says no time, or too long a one, is raised."""
    assert asked(refused(Busy("full", retry_after=7), Busy("full", retry_after=3))) == "done"
    assert rests == [7, 3]
    for refusal in (Busy("full"), Busy("full", retry_after=3600)):
        with pytest.raises(Busy):
            asked(refused(refusal))


def test_what_may_be_asked_twice_is(rests: list[float]) -> None:
    """A poll waits for a server that does not say for how long it is away; another error is raised at once."""
    away = Unavailable("nobody there"), Unavailable("starting", retry_after=4)
    assert asked(refused(*away), 1.5) == "done"
    assert rests == [1.5, 4]
    with pytest.raises(NotFound):
        asked(refused(NotFound("gone")), 1.5)
