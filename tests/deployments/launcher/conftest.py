"""A real `encore serve` as a child process, as a person starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from deployments.launcher.host.processes import descendants
from tests.conftest import free_ports


class Server:
    """One `encore serve` on `cache_dir`; everything it prints is in `output`."""

    def __init__(self, cache_dir: Path, *arguments: str, log: Path) -> None:
        self.cache_dir = cache_dir
        self._log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [Path(sys.executable).with_name("encore"), "serve", "--cache-dir", cache_dir, *arguments],
                stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=os.environ | {"COLUMNS": "200"},
            )  # fmt: skip

    @property
    def output(self) -> str:
        """What it printed so far."""
        return self._log.read_text()

    @property
    def url(self) -> str:
        """The address in its ready block."""
        line = next(line for line in self.output.splitlines() if line.startswith("  API"))
        return line.split()[1].removesuffix("/v1/videos")

    def http(self) -> httpx.Client:
        """Return a client for its API."""
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def wait_for(self, text: str, seconds: float = 300) -> None:
        """Wait until it has printed `text`."""
        end = time.monotonic() + seconds
        while text not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < end, self.output
            time.sleep(0.05)

    def stop(self, kind: signal.Signals = signal.SIGTERM) -> float:
        """Send `kind` and return the seconds until it and all it started were gone."""
        family = descendants(self.process.pid)
        began = time.monotonic()
        self.process.send_signal(kind)
        self.process.wait(60)
        seconds = time.monotonic() - began
        left = [pid for pid in family if alive(pid)]
        assert not left, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left if alive(pid)]
        return seconds


def alive(pid: int) -> bool:
    """Whether `pid` runs and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.fixture
def start(tmp_path: Path, short_tmp: Path) -> Iterator[Callable[..., Server]]:
    """A function that starts a server on a free port; whatever still runs afterwards is stopped."""
    servers: list[Server] = []

    def run(cache_dir: Path, *arguments: str, choose_port: bool = True) -> Server:
        if choose_port and not any(argument.startswith("--port") for argument in arguments):
            arguments = (*arguments, f"--port={free_ports(1)[0]}")
        servers.append(Server(cache_dir, *arguments, log=tmp_path / f"server-{len(servers)}.log"))
        return servers[-1]

    yield run
    for server in servers:
        if server.process.poll() is None:
            server.stop()
