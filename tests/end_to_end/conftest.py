"""One real Ray Serve cluster for the whole run: four deployments, a real Valkey, a folder as L3, on free ports."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import ValkeyServer, free_ports

SECRET = "a secret of these tests alone"
ENVIRONMENT = {
    "ENCORE_SECRET": SECRET,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "ENCORE_LOOPBACK_ONLY": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
    "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_raylet_start_wait_time_s": "120",
}


@dataclass(frozen=True)
class Cluster:
    """The running application."""

    url: str
    metrics_url: str
    settings: Any
    handle: Any

    def http(self) -> httpx.Client:
        """Return a client for raw requests."""
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False)


@pytest.fixture(scope="session")
def valkey_of_cluster(valkey_binary: Path, short_tmp: Path) -> Iterator[ValkeyServer]:
    """A Valkey of the cluster's own: it writes at any time, and who shares `valkey_server` empties that and counts."""
    folder = short_tmp / "cluster"
    folder.mkdir()
    server = ValkeyServer(valkey_binary, folder)
    yield server
    server.kill()


@pytest.fixture(scope="session")
def cluster(valkey_of_cluster: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start Ray and deploy `encore`; a router, a text encoder, a diffusion and an encoding replica."""
    os.environ.update(ENVIRONMENT)
    import ray
    from ray import serve

    from deployments.app import build
    from serve_app.settings import Settings

    port, metrics_port = free_ports(2)
    l3: Path = tmp_path_factory.mktemp("l3")
    ray.init(
        address="local", num_cpus=8, include_dashboard=False, object_store_memory=150 * 2**20, namespace="test",
        log_to_driver=False, _metrics_export_port=metrics_port, _system_config={"metrics_report_interval_ms": 1000},
    )  # fmt: skip
    try:  # 8 logical CPUs: a replica takes one unless a config says less
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        settings = Settings(
            redis_url=valkey_of_cluster.url,
            redis_timeout_seconds=10.0,
            l3_url=l3.as_uri(),
            device="cpu",
            torch_threads=1,
            linger_seconds=1.0,
        )
        handle = serve.run(build(settings), name="encore")
        yield Cluster(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}", settings, handle)
    finally:
        serve.shutdown()
        ray.shutdown()
