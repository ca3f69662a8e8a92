"""How many threads torch may use in a replica.

Ray sets OMP_NUM_THREADS from `num_cpus`, and a fractional one gives a single thread whatever the machine has; so the
number is always chosen here, from the settings or from the cores Ray promised.
"""

from __future__ import annotations

import math

import ray

from serve_app.settings import Settings


def torch_threads(settings: Settings) -> int:
    """Return the configured number of threads, or the whole cores of this replica, at least one."""
    if settings.torch_threads is not None:
        return settings.torch_threads
    assigned: dict[str, float] = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
    return max(1, math.floor(assigned.get("CPU", 1.0)))
