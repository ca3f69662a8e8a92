"""How a flight of a video ends, and the seams the service needs: somebody who renders, peers that must forget."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from serve_app.core import Entry, Outcome, RenderEvent, RenderRequest, Rule, Urgency
from serve_app.errors import NotStored
from serve_app.flight.single_flight import Flight


@dataclass(frozen=True, slots=True)
class FlightResult:
    """What everybody on a flight gets; `stored` is False when no durable tier could take the video."""

    entry: Entry
    outcome: Outcome
    embedding: str | None
    stored: bool

    def outcome_for(self, led: bool) -> Outcome:
        """Return the outcome as one passenger should tell it: who only waited for a render `joined` it."""
        return self.outcome if led or self.outcome.is_hit else Outcome.JOINED


def not_stored() -> NotStored:
    """Return the error of a video that was made and that no durable tier could take."""
    return NotStored("The video was made, but no storage could take it.", retry_after=5)


VideoFlight = Flight[FlightResult, RenderEvent]


class Renderer(Protocol):
    """Whoever can make a video that no tier has: deployments behind handles, or one process in tests."""

    def render(self, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        """Yield Started, Progress as it happens, and Finished; raises EncoreError."""
        ...

    async def cancel(self, key: str) -> None:
        """End the render of key(video) at its next step, wherever it runs."""
        ...

    async def drop_latents(self, key: str) -> None:
        """Delete the latents of key(latents), those too that are just being written somewhere."""
        ...

    def promote(self, key: str, urgency: Urgency) -> None:
        """Let the render of key(video) go on as `urgency` asks, wherever it waits or runs; returns at once."""
        ...

    async def stats(self) -> dict[str, Any]:
        """Return what the renderer knows of its load."""
        ...


class Peers(Protocol):
    """The other router replicas."""

    async def forget(self, keys: tuple[str, ...], job_ids: tuple[str, ...]) -> None:
        """Make every replica's memory forget these videos and jobs."""
        ...

    async def learn(self, rules: tuple[Rule, ...]) -> None:
        """Tell every replica of invalidations, as far as it can be reached; the others hear of them anyway."""
        ...

    async def counts(self) -> tuple[str, list[dict[str, Any]]]:
        """Return this replica's name, and the `VideoService.counts` of each that can be reached, this one too."""
        ...
