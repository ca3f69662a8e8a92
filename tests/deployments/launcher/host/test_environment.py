"""What the server process is told by environment: ports, all of them held, its instance, limits and patience."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.launcher.haproxy import OPTIONS_VARIABLE
from deployments.launcher.host.environment import PATIENCE, REPLICA_PORTS, choose_ports, environment, haproxy_options
from deployments.launcher.host.folder import CacheFolder
from deployments.launcher.host.ports import FreePorts
from deployments.replica.instance import VARIABLE
from serve_app.settings import Settings


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[CacheFolder]:
    folder = CacheFolder(tmp_path / "cache")
    yield folder
    folder.release()


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[FreePorts, FreePorts]]:
    servers = FreePorts(tmp_path), FreePorts(tmp_path)
    yield servers
    for server in servers:
        server.release()


def test_every_port_a_replica_may_get_is_held(folder: CacheFolder, held: tuple[FreePorts, FreePorts]) -> None:
    """Proves that two servers' ranges, HTTP and gRPC, do not overlap, and that Ray is told those that are held."""
    options = haproxy_options("one", Settings())
    ranges = []
    for number, free in enumerate(held):
        env = environment(folder, choose_ports(8000 + number, free), options)
        for kind in ("HTTP", "GRPC"):
            first, last = (int(env[f"RAY_SERVE_DIRECT_INGRESS_{end}_{kind}_PORT"]) for end in ("MIN", "MAX"))
            ranges.append(range(first, last + 1))
            assert all(not held[1 - number]._hold(port) for port in ranges[-1])
    assert [len(each) for each in ranges] == [REPLICA_PORTS] * 4
    assert len({port for each in ranges for port in each}) == 4 * REPLICA_PORTS


def test_settings_reach_haproxy(folder: CacheFolder, held: tuple[FreePorts, FreePorts]) -> None:
    """Proves that limits of clients come from the settings, connections from what files allow, and the id is passed."""
    settings = Settings(client_header_timeout_seconds=3, max_connections=10**9, max_connections_per_address=7)
    options = haproxy_options("the id", settings)
    env = environment(folder, choose_ports(8000, held[0]), options)
    told = json.loads(env[OPTIONS_VARIABLE])
    assert (told["header_timeout"], told["max_connections_per_address"]) == (3, 7)
    assert told["max_connections"] * 2.5 <= resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert env[VARIABLE] == told["instance"] == "the id"


def test_patience_is_the_environments_where_it_has_one(folder: CacheFolder, held: tuple[FreePorts, FreePorts]) -> None:
    """Proves that Ray's limits are raised, unless a person set one."""
    name = "RAY_raylet_start_wait_time_s"
    env = environment(folder, choose_ports(8000, held[0]), haproxy_options("", Settings()), inherited={name: "7"})
    assert env[name] == "7"
    assert {key: env[key] for key in PATIENCE if key != name} == {k: v for k, v in PATIENCE.items() if k != name}
