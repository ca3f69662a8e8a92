"""How a flight ended survives its way through the record, and nonsense there is an error like any other."""

from __future__ import annotations

import pytest

from serve_app.core import Outcome
from serve_app.errors import EncoreError, FingerprintMismatch, NotFound, RenderCancelled, RenderFailed, Unavailable
from serve_app.flight import result_json
from serve_app.flight.record import FlightState, FlightStatus


@pytest.mark.parametrize("outcome", list(Outcome))
def test_an_outcome_comes_back(outcome: Outcome) -> None:
    """What a flight landed with is read as it was written."""
    assert result_json.outcome_of(FlightStatus(1, FlightState.LANDED, detail=result_json.completed(outcome))) is outcome


@pytest.mark.parametrize("kind", [RenderFailed, RenderCancelled, Unavailable, FingerprintMismatch])
def test_an_error_comes_back(kind: type[EncoreError]) -> None:
    """Waiters elsewhere get the leader's error: class, message and Retry-After."""
    error = result_json.error_of(
        FlightStatus(1, FlightState.FAILED, detail=result_json.failed(kind("It broke.", retry_after=3)))
    )
    assert (type(error), error.message, error.retry_after) == (kind, "It broke.", 3)


def test_other_errors_are_failed_renders() -> None:
    """A class that no render raises is told as a failed render, not as itself."""
    error = result_json.error_of(FlightStatus(1, FlightState.FAILED, detail=result_json.failed(NotFound("no"))))
    assert (type(error), error.message) == (RenderFailed, "no")


@pytest.mark.parametrize("detail", ["", "nonsense", "[1]", '{"outcome": "magic"}'])
def test_nonsense_says_nothing(detail: str) -> None:
    """A detail that nobody here wrote gives no outcome and a plain error."""
    news = FlightStatus(1, FlightState.FAILED, detail=detail)
    assert result_json.outcome_of(news) is None
    assert type(result_json.error_of(news)) is RenderFailed
