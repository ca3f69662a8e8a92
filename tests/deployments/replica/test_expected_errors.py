"""What Encore raises on purpose is one line of Serve's log."""

from __future__ import annotations

import logging
import sys

import pytest

from deployments.replica.expected_errors import shorten
from serve_app.errors import EncoreError, RenderCancelled, RenderFailed


def record_of(error: Exception) -> logging.LogRecord:
    try:
        raise error
    except Exception:
        return logging.LogRecord("ray.serve", logging.ERROR, "replica.py", 1, "Request failed.", (), sys.exc_info())


@pytest.mark.parametrize(
    ("error", "level"),
    [(RenderCancelled("The render was cancelled."), logging.INFO), (RenderFailed("It diverged."), logging.ERROR)],
)
def test_expected_errors_are_one_line(error: EncoreError, level: int) -> None:
    """No traceback; a cancelled render is no error."""
    record = record_of(error)
    assert shorten(record)
    assert record.levelno == level
    told = logging.Formatter().format(record)
    assert told == f"Request failed. {type(error).__name__}: {error.message}"


def test_others_keep_their_traceback() -> None:
    """A fault of the code is told whole."""
    record = record_of(ZeroDivisionError())
    assert shorten(record)
    assert "Traceback" in logging.Formatter().format(record)
