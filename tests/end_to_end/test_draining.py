"""A replica learns that Serve shuts it down while its requests are still running."""

from __future__ import annotations

import asyncio

from ray import serve

from deployments.replica.draining import is_draining
from tests.end_to_end.conftest import Cluster


class Waits:
    """Works until its replica is shut down."""

    async def work(self) -> str:
        """Return once the replica is being shut down; Serve itself would wait for this to end."""
        for _ in range(300):
            if is_draining():
                return "handed back"
            await asyncio.sleep(0.1)
        return "never told"

    def draining(self) -> bool:
        """Tell what is known now."""
        return is_draining()


def test_a_request_can_end_because_its_replica_is_shut_down(cluster: Cluster) -> None:
    """Nothing is draining while the application runs; when it is deleted a running request hears of it and ends.

    This guards the private names of Ray that `deployments.replica.draining` reads.
    """
    options = {"ray_actor_options": {"num_cpus": 0}, "graceful_shutdown_wait_loop_s": 0.2}
    application = serve.deployment(**options)(Waits).bind()  # type: ignore[arg-type]
    handle = serve.run(application, name="draining", route_prefix=None)
    assert not handle.draining.remote().result(timeout_s=30)
    answer = handle.work.remote()
    serve.delete("draining")
    assert answer.result(timeout_s=30) == "handed back"
