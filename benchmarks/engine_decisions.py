"""How long does the batching scheduler take to decide, with ten thousand jobs queued?"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from engine_traffic import STEPS, percentile

from serve_app.core import Priority
from serve_app.engine.scheduler import BatchScheduler

QUEUED = 10_000
_SHAPES = 6
_MAX_JOBS, _MAX_ROWS = 8, 16
_PASS_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Decisions:
    """Milliseconds of a decision: the next batch, and a step recorded for each of its jobs."""

    mean: float
    p99: float
    largest: float


class Queue:
    """A full scheduler: mixed shapes, rows, steps, priorities and deadlines; whoever ends is replaced."""

    def __init__(self, queued: int, seed: int = 0) -> None:
        self._chance = random.Random(seed)
        self._now = 0.0
        self._added = 0
        self.scheduler = BatchScheduler(
            _MAX_JOBS,
            lambda shape: _MAX_ROWS,
            lambda shape, rows: _PASS_SECONDS * rows**0.9,
            lambda shape, rows: _PASS_SECONDS,
        )
        self.refill(queued)

    def refill(self, queued: int) -> None:
        while len(self.scheduler) < queued:
            self._add()

    def decide(self) -> int:
        """Do what the engine does between two passes; return how many jobs advanced."""
        batch = self.scheduler.next_batch(self._now)
        for job_id in batch:
            self.scheduler.advance(job_id)
        self._now += _PASS_SECONDS
        return len(batch)

    def _add(self) -> None:
        chance = self._chance
        steps, priority = chance.choice(STEPS), chance.choice(list(Priority))
        deadline = self._now + chance.uniform(1, 3600) if chance.random() < 0.2 else None
        self._added += 1
        self.scheduler.add(
            str(self._added),
            chance.randrange(_SHAPES),
            steps,
            asked_at=self._now,
            rows=chance.choice((1, 2)),
            priority=priority,
            deadline=deadline,
        )


def measure(decisions: int, queued: int = QUEUED) -> Decisions:
    """Time so many decisions, the queue kept full between them."""
    queue = Queue(queued)
    taken = []
    for _ in range(decisions):
        began = time.perf_counter()
        queue.decide()
        taken.append(1000 * (time.perf_counter() - began))
        queue.refill(queued)
    return Decisions(sum(taken) / len(taken), percentile(taken, 99), max(taken))
