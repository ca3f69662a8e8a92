"""Three routers and two diffusion replicas on this machine, who of them is up, and SIGKILL.

The local config with `storm_app.build` in it and fixed numbers of replicas. `max_batch_size` is 1: how many rows share
a pass decides the last bits of a product, and with them now and then a byte of the file, so only a render that shares
its pass with nobody equals the reference run's bit for bit. Serve looks after its replicas every second, not every ten.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import storm_app
from server import Server, encore_server, local_config
from storm_app import Note

from deployments.replica.instance import VARIABLE

ROUTERS, DIFFUSIONS = 3, 2
REPLICAS = {"CacheRouter": ROUTERS, "Diffusion": DIFFUSIONS}
TORCH_THREADS = 1
SETTINGS = {"max_batch_size": 1, "torch_threads": TORCH_THREADS}
_LISTENING = "0A"  # in /proc/net/tcp
_WHOLE_SECONDS = 180.0


def config() -> dict[str, Any]:
    """Return the local config with what a storm needs."""
    changed = local_config()
    application = changed["applications"][0]
    application["import_path"] = "benchmarks.storm_app:build"
    for deployment in application["deployments"]:
        del deployment["autoscaling_config"]
        deployment["num_replicas"] = REPLICAS.get(deployment["name"], 1)
        deployment["ray_actor_options"]["num_cpus"] = 0.1
        deployment["health_check_period_s"] = 1
    return changed


@dataclass(frozen=True, slots=True)
class StormServer:
    """The running server and its notes."""

    server: Server
    notes_file: Path

    @property
    def port(self) -> int:
        """Where HAProxy takes requests for all routers."""
        return self.server.port

    def notes(self) -> list[Note]:
        """Return what was noted so far."""
        return storm_app.read(self.notes_file)

    def renders(self) -> list[Note]:
        """Return the renders that began so far."""
        return [note for note in self.notes() if note.what == storm_app.RENDER]

    def routers(self) -> dict[int, int]:
        """Return the process ids of the routers that take requests, each with its own HTTP port."""
        ports = {pid: _http_port(pid) for pid in self._replicas("CacheRouter")}
        return {pid: port for pid, port in ports.items() if port is not None}

    @property
    def instance(self) -> str:
        """The mark that this start of the server has, as its replicas know it."""
        environment = Path(f"/proc/{self._replicas('CacheRouter')[0]}/environ").read_bytes().split(b"\0")
        return dict(line.decode().split("=", 1) for line in environment if b"=" in line)[VARIABLE]

    def diffusions(self) -> list[int]:
        """Return the process ids of the diffusion replicas that take renders."""
        ready = {note.pid for note in self.notes() if note.what == storm_app.READY}
        return [pid for pid in self._replicas("Diffusion") if pid in ready]

    def kill(self, pid: int) -> None:
        """End a replica at once; raises LookupError when `pid` is none of ours."""
        if pid not in [*self._replicas("CacheRouter"), *self._replicas("Diffusion")]:
            raise LookupError(f"{pid} is no replica of this server")
        os.kill(pid, signal.SIGKILL)

    def wait_until_whole(self) -> None:
        """Wait until every replica is up and stays so for a moment; raises RuntimeError after three minutes."""
        for _ in range(2):
            _wait(lambda: len(self.routers()) == ROUTERS and len(self.diffusions()) == DIFFUSIONS)
            time.sleep(1.5)

    def _replicas(self, deployment: str) -> list[int]:
        return self.server.replicas("encore", deployment)


@contextlib.contextmanager
def storm_server() -> Iterator[StormServer]:
    """Start it, wait until every replica is up, and end it."""
    with tempfile.TemporaryDirectory(prefix="encore-") as folder:
        notes = Path(folder) / "notes"
        with encore_server(overrides=SETTINGS, config=config(), environment={storm_app.VARIABLE: str(notes)}) as server:
            storm = StormServer(server, notes)
            storm.wait_until_whole()
            yield storm


def _http_port(pid: int) -> int | None:
    """Return the port of IPv4's loopback on which a router takes requests; Ray's own ports are IPv6 sockets."""
    try:
        links = [str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()]
        sockets = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    except OSError:
        return None  # it ended while we looked
    for fields in map(str.split, sockets):
        if fields[3] == _LISTENING and f"socket:[{fields[9]}]" in links:
            return int(fields[1].rpartition(":")[2], 16)
    return None


def _wait(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WHOLE_SECONDS
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError("the replicas did not come back")
        time.sleep(0.2)
