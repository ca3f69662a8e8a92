"""Renders spread over idle replicas."""

from __future__ import annotations

import asyncio
import os
import time

from ray import serve
from ray.serve.config import RequestRouterConfig

from deployments.placement import LeastBusyRouter
from tests.end_to_end.conftest import Cluster


class Holds:
    """Is busy until told otherwise."""

    def __init__(self) -> None:
        self._free = asyncio.Event()
        self._working = 0

    async def work(self) -> int:
        """Return this replica's process id, once it may end."""
        self._working += 1
        await self._free.wait()
        return os.getpid()

    def busy(self) -> int:
        """Return how many work here."""
        return self._working

    def release(self) -> None:
        """Let all work end."""
        self._free.set()


def test_each_idle_replica_gets_one_before_any_gets_two(cluster: Cluster) -> None:
    """Four long requests at once on four replicas: one each, where two at random would put some beside others."""
    application = serve.deployment(
        num_replicas=4,
        max_ongoing_requests=4,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_wait_loop_s=0.2,
        request_router_config=RequestRouterConfig(
            request_router_class=LeastBusyRouter, request_router_kwargs={"answer_seconds": 30.0}
        ),
    )(Holds).bind()
    handle = serve.run(application, name="placement", route_prefix=None)
    try:
        answers = [handle.work.remote() for _ in range(4)]
        until = time.monotonic() + 60
        while sum(handle.broadcast("busy").results()) < 4 and time.monotonic() < until:
            time.sleep(0.05)
        handle.broadcast("release").results()
        places = [answer.result(timeout_s=30) for answer in answers]
        assert len(set(places)) == 4
    finally:
        serve.delete("placement")
