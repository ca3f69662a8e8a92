"""Ports on loopback: one that was asked for must be free, one that was not is the next free one.

A port is bound seconds after it is chosen, so servers that start at the same time would choose the same ones. Each
chosen port is therefore held by a lock on a file that all servers of this user share, until the server ends.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from serve_app.errors import Conflict

LOOPBACK = "127.0.0.1"


def is_free(port: int) -> bool:
    """Whether no program listens on `port` of loopback or of every address."""
    for host in (LOOPBACK, ""):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True


class FreePorts:
    """Hands out free ports, each to one server at a time, until `release`."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(f"/tmp/encore-ports-{os.getuid()}")  # noqa: S108 - ours alone, see below
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if self._folder.stat().st_uid != os.getuid():
            raise Conflict(f"{self._folder} belongs to somebody else.")
        self._held: list[IO[str]] = []

    def near(self, port: int) -> int:
        """Return the first free port from `port` upwards; raises Conflict when a hundred are busy."""
        for candidate in range(port, port + 100):
            if is_free(candidate) and self._hold(candidate):
                return candidate
        raise Conflict(f"Ports {port} to {port + 99} are all busy.", param="port")

    def demanded(self, port: int, what: str) -> int:
        """Return `port`; raises Conflict naming it and `what` it is for when another program has it already."""
        if not is_free(port) or not self._hold(port):
            raise Conflict(f"Port {port} ({what}) is busy; end what listens there or choose another.", param="port")
        return port

    def block(self, size: int, starts: Iterable[int]) -> int:
        """Return the first of `starts` from which on `size` ports are free, and hold them all.

        Raises Conflict when there is no such block.
        """
        for start in starts:
            kept = len(self._held)
            if all(is_free(port) and self._hold(port) for port in range(start, start + size)):
                return start
            while len(self._held) > kept:
                self._held.pop().close()
        raise Conflict(f"No {size} ports in a row are free for replicas; stop another server of this machine.")

    def release(self) -> None:
        """Let other servers have the ports."""
        while self._held:
            self._held.pop().close()

    def _hold(self, port: int) -> bool:
        file = (self._folder / str(port)).open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._held.append(file)
        return True
