"""Whether Serve is shutting this replica down, which Serve 2.60 tells no user code before all requests have ended.

It waits for them first, for up to graceful_shutdown_timeout_s, and only then calls `__del__`. Diffusion wants to know
at the beginning, to hand back what it cannot finish. So two private names of Ray are read here, and here alone: the
worker's actors and the replica's own flag. A Ray without them answers False, and Serve's own waiting is what remains.
"""

from __future__ import annotations

from typing import Any

import ray


def is_draining() -> bool:
    """Tell whether the replica of this process is being shut down."""
    worker: Any = getattr(getattr(ray, "_private", None), "worker", None)
    actors = getattr(getattr(worker, "global_worker", None), "actors", {})
    return any(bool(getattr(_implementation(actor), "_shutting_down", False)) for actor in actors.values())


def _implementation(actor: object) -> object:
    return getattr(actor, "_replica_impl", None)
