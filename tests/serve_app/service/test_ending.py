"""How a flight ended survives its way through the record, and nonsense there is an error like any other."""

from __future__ import annotations

import pytest

from serve_app.cache.flight import News, State
from serve_app.core import Outcome
from serve_app.errors import EncoreError, FingerprintMismatch, NotFound, RenderCancelled, RenderFailed, Unavailable
from serve_app.service import ending


@pytest.mark.parametrize("outcome", list(Outcome))
def test_an_outcome_comes_back(outcome: Outcome) -> None:
    """What a flight landed with is read as it was written."""
    assert ending.outcome_of(News(1, State.LANDED, detail=ending.landed(outcome))) is outcome


@pytest.mark.parametrize("kind", [RenderFailed, RenderCancelled, Unavailable, FingerprintMismatch])
def test_an_error_comes_back(kind: type[EncoreError]) -> None:
    """Waiters elsewhere get the leader's error: class, message and Retry-After."""
    error = ending.error_of(News(1, State.FAILED, detail=ending.failed(kind("It broke.", retry_after=3))))
    assert (type(error), error.message, error.retry_after) == (kind, "It broke.", 3)


def test_other_errors_are_failed_renders() -> None:
    """A class that no render raises is told as a failed render, not as itself."""
    error = ending.error_of(News(1, State.FAILED, detail=ending.failed(NotFound("no"))))
    assert (type(error), error.message) == (RenderFailed, "no")


@pytest.mark.parametrize("detail", ["", "nonsense", "[1]", '{"outcome": "magic"}'])
def test_nonsense_says_nothing(detail: str) -> None:
    """A detail that nobody here wrote gives no outcome and a plain error."""
    news = News(1, State.FAILED, detail=detail)
    assert ending.outcome_of(news) is None
    assert type(ending.error_of(news)) is RenderFailed
