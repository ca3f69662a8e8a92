"""Where a render goes: to the least busy of all replicas.

Serve's own choice is the less busy of two at random, which suits requests of milliseconds. A render takes seconds and
replicas are few: in a simulation of 64 of them at half their capacity, two at random made the mean render a fifth
longer, because jobs met on one device while others were idle (`benchmarks/engine_simulation.py`).
"""

from __future__ import annotations

import random
from typing import Any

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica


class LeastBusyRouter(FIFOMixin, RequestRouter):
    """Offers all replicas at once, of which Serve then takes the one with the shortest queue; equals by lot."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return one rank with every replica in random order; when all are full Serve asks again, ever less often."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        return [random.sample(candidate_replicas, len(candidate_replicas))]

    def initialize_state(self, **kwargs: Any) -> None:
        """Keep nothing."""
