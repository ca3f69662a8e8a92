"""A local Encore server for the length of a `with`, started as `encore serve` does, on a fresh folder and free ports.

The launcher runs as a child in a session of its own, so a Ctrl-C at the terminal reaches the benchmark alone, which
then ends the launcher, which ends everything else. Should the benchmark be killed, the kernel ends the launcher.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deployments.launcher.host.processes import descendants, end, spawn
from deployments.launcher.launcher import LOCAL_CONFIG

ROOT = Path(__file__).parents[1]
_START_SECONDS = 180.0
_STOP_SECONDS = 20.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: its API's port, its metrics' port, its cache folder and the launcher's process id."""

    port: int
    metrics_port: int
    folder: Path
    pid: int

    @property
    def config(self) -> dict[str, Any]:
        """The config that is deployed."""
        config: dict[str, Any] = json.loads((self.folder / "run" / "config.json").read_text())
        return config

    @property
    def secret(self) -> str:
        """The secret that names things in its shared tiers."""
        return (self.folder / "secret").read_text().strip()

    def replica(self, application: str, deployment: str) -> int:
        """Return the process id of the one replica of a deployment; raises LookupError when there is not one."""
        found = self.replicas(application, deployment)
        if len(found) != 1:
            raise LookupError(f"{len(found)} replicas of {deployment} in {application}")
        return found[0]

    def replicas(self, application: str, deployment: str) -> list[int]:
        """Return the process ids of a deployment's replicas."""
        title = f"ServeReplica:{application}:{deployment}"
        return [pid for pid in descendants(self.pid) if title in _command(pid)]


def local_config() -> dict[str, Any]:
    """Return the config that `encore serve` deploys."""
    config: dict[str, Any] = yaml.safe_load(LOCAL_CONFIG.read_text())
    return config


@contextlib.contextmanager
def encore_server(
    *,
    overrides: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Start a server with `overrides` of its Settings, under `config` instead of the local one, and more environment.

    Raises RuntimeError with the end of its log when it does not start. Modules of this folder can be deployed by
    import path: the repository's root is on the replicas' path.
    """
    folder = Path(tempfile.mkdtemp(prefix="encore-"))
    try:
        (folder / "config.yaml").write_text(yaml.safe_dump(dict(config or local_config())))
        arguments = {
            "cache_dir": str(folder / "c"), "port": free_port(), "overrides": dict(overrides or {}),
            "config": str(folder / "config.yaml"),
        }  # fmt: skip
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "deployments.launcher.launcher", json.dumps(arguments)]
        launcher = spawn(command, env=os.environ | {"PYTHONPATH": paths, **(environment or {})}, log=folder / "log")
        try:
            metrics_port = _wait_until_ready(launcher, folder / "log")
            yield Server(arguments["port"], metrics_port, folder / "c", launcher.pid)
        finally:
            end(launcher, _STOP_SECONDS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """Return a port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cpu_seconds(pid: int) -> float:
    """Return the processor time a process has used so far, in user and system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _wait_until_ready(launcher: Any, log: Path) -> int:
    deadline = time.monotonic() + _START_SECONDS
    while launcher.poll() is None and time.monotonic() < deadline:
        said = log.read_text()
        if "Encore is ready." in said and (found := re.search(r"Metrics +http://[\d.]+:(\d+)", said)):
            return int(found[1])
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start:\n{log.read_text()[-2000:]}")


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""  # it ended while we looked
