"""How the flight of a video ends, for all that wait for it."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.core import Entry, Outcome
from serve_app.errors import NotStored


@dataclass(frozen=True, slots=True)
class FlightResult:
    """What every waiter gets; `stored` is False when no durable tier could take the video."""

    entry: Entry
    outcome: Outcome
    embedding: str | None
    stored: bool

    def outcome_for(self, led: bool) -> Outcome:
        """Return the outcome as one waiter should tell it: a follower of a render `joined` it."""
        return self.outcome if led or self.outcome.is_hit else Outcome.JOINED


def not_stored() -> NotStored:
    """Return the error of a video that was made and that no durable tier could take."""
    return NotStored("The video was made, but no storage could take it.", retry_after=5)
