"""What single requests, jobs and warm-ups of one router share, and how much it takes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from serve_app.cache.cache import TieredCache
from serve_app.clock import steady
from serve_app.flight.attempts import MAX_ATTEMPTS
from serve_app.service.invalidator import Invalidator
from serve_app.service.loader import VideoLoader
from serve_app.service.outcomes import OutcomeCounter
from serve_app.service.peers import Peers
from serve_app.service.plan import Planner
from serve_app.service.planning_threads import Planning


@dataclass(frozen=True, slots=True)
class Limits:
    """Renders a router started, requests that wait for one (and as many jobs that do), those of warm-ups, and for how
    long records live."""

    max_queued: int = 64
    max_waiting: int = 1_500
    linger_seconds: float = 30.0
    job_ttl_seconds: float = 7 * 86_400
    warm_up_renders: int = 8
    max_attempts: int = MAX_ATTEMPTS


@dataclass(frozen=True, slots=True)
class RouterParts:
    """One of each per router; `clock` is Unix seconds that never go back."""

    planner: Planner
    planning: Planning
    cache: TieredCache
    loader: VideoLoader
    invalidator: Invalidator
    outcomes: OutcomeCounter
    peers: Peers
    limits: Limits
    clock: Callable[[], float] = steady
