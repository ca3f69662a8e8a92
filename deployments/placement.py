"""Where a render goes: to the least busy of many replicas.

Serve's own choice is the less busy of two at random, by queue lengths that are up to ten seconds old. That suits
requests of milliseconds. A render takes seconds, so looking costs little and a bad place much: jobs that meet on one
device while others are idle make the mean render a fifth longer at half load (`benchmarks/engine_simulation.py`).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict, deque
from typing import Any

from ray.exceptions import ActorDiedError
from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

PROBED = 16
"""Replicas that are asked for their queue length, at most; chosen at random when there are more."""
ANSWER_SECONDS = 1.0


class LeastBusyRouter(FIFOMixin, RequestRouter):
    """Asks replicas how many requests they have and takes the one with fewest; equals by lot.

    What this process has sent and no replica has accepted yet counts too, so requests at one time do not meet.
    """

    def initialize_state(self, *, answer_seconds: float = ANSWER_SECONDS, **_: Any) -> None:
        """Nothing was sent yet. answer_seconds: who takes longer to tell its queue's length is passed over."""
        self._answer_seconds = answer_seconds
        self._turn = asyncio.Lock()
        self._clock = time.monotonic
        self._on_their_way: defaultdict[ReplicaID, deque[float]] = defaultdict(deque)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return one rank with one replica; none when all that were asked are full: Serve asks again, ever later."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        async with self._turn:
            asked = random.sample(candidate_replicas, min(PROBED, len(candidate_replicas)))
            lengths = await asyncio.gather(*map(self._length, asked))
            free = [
                (length, place)
                for place, (replica, length) in enumerate(zip(asked, lengths, strict=True))
                if length is not None and length < replica.max_ongoing_requests
            ]
            if not free:
                return []
            best = asked[min(free)[1]]
            self._on_their_way[best.replica_id].append(self._clock() + self._answer_seconds)
            return [[best]]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Count it no more: the replica has it and does so itself."""
        if waiting := self._on_their_way[replica_id]:
            waiting.popleft()

    async def _length(self, replica: RunningReplica) -> int | None:
        """Return the requests at a replica, those on their way too; None when it does not answer."""
        sent = self._under_way(replica.replica_id)  # before asking: it may be accepted between the answer and now
        try:
            async with asyncio.timeout(self._answer_seconds):
                there = await replica.get_queue_len(deadline_s=self._answer_seconds)
        except ActorDiedError:
            self.on_replica_actor_died(replica.replica_id)
            return None
        except Exception:
            return None  # busy, cut off or shutting down: another one is asked
        self.on_new_queue_len_info(replica.replica_id, there)
        return there + sent

    def _under_way(self, replica_id: ReplicaID) -> int:
        """Return what was sent and not accepted; after `answer_seconds` it was refused, or its client has left."""
        waiting = self._on_their_way[replica_id]
        while waiting and waiting[0] < self._clock():
            waiting.popleft()
        return len(waiting)
