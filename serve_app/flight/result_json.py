"""How a flight ended, as the JSON that its record carries to waiters in other processes."""

from __future__ import annotations

import json
from typing import Any

from serve_app.core import Outcome
from serve_app.errors import (
    EncoreError,
    FingerprintMismatch,
    NotStored,
    RenderCancelled,
    RenderCrashed,
    RenderFailed,
    Unavailable,
)
from serve_app.flight.record import FlightStatus

_KINDS: dict[str, type[EncoreError]] = {
    kind.__name__: kind
    for kind in (RenderFailed, RenderCancelled, RenderCrashed, NotStored, Unavailable, FingerprintMismatch)
}


def completed(outcome: Outcome) -> str:
    """Return the detail of a flight that ended with a stored video."""
    return json.dumps({"outcome": outcome.value})


def failed(error: EncoreError) -> str:
    """Return the detail of a flight that ended with `error`."""
    kind = type(error).__name__
    return json.dumps(
        {
            "kind": kind if kind in _KINDS else RenderFailed.__name__,
            "message": error.message,
            "retry_after": error.retry_after,
        }
    )


def outcome_of(status: FlightStatus) -> Outcome | None:
    """Return how a completed flight got its video, None when the record does not say."""
    word = _read(status.detail).get("outcome")
    return Outcome(word) if word in set(Outcome) else None


def error_of(status: FlightStatus) -> EncoreError:
    """Return the error a failed flight ended with."""
    said = _read(status.detail)
    kind = _KINDS.get(said.get("kind", ""), RenderFailed)
    return kind(said.get("message", "The render failed."), retry_after=said.get("retry_after"))


def _read(detail: str) -> dict[str, Any]:
    try:
        said = json.loads(detail or "{}")
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
