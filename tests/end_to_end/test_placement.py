"""Renders spread over idle replicas."""

from __future__ import annotations

import asyncio
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

    async def work(self) -> None:
        """Go on until it may end."""
        self._working += 1
        await self._free.wait()

    def working(self) -> int:
        """Return how many requests this replica has."""
        return self._working

    def release(self) -> None:
        """Let all work end."""
        self._free.set()


def test_each_idle_replica_gets_one_before_any_gets_two(cluster: Cluster) -> None:
    """Six long requests at once on six replicas: one each, where two at random would put some beside others."""
    application = serve.deployment(
        num_replicas=6,
        max_ongoing_requests=4,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_wait_loop_s=0.2,
        request_router_config=RequestRouterConfig(request_router_class=LeastBusyRouter),
    )(Holds).bind()
    handle = serve.run(application, name="placement", route_prefix=None)
    try:
        answers = [handle.work.remote() for _ in range(6)]
        until = time.monotonic() + 30
        while sum(places := handle.broadcast("working").results()) < 6 and time.monotonic() < until:
            time.sleep(0.1)
        assert places == [1] * 6
        handle.broadcast("release").results()
        for answer in answers:
            answer.result(timeout_s=30)
    finally:
        serve.delete("placement")
