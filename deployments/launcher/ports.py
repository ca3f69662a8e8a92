"""Ports on loopback: one that was asked for must be free, one that was not is the next free one."""

from __future__ import annotations

import socket

from serve_app.errors import Conflict

LOOPBACK = "127.0.0.1"


def is_free(port: int) -> bool:
    """Whether nobody listens on `port` of loopback or of every address."""
    for host in (LOOPBACK, ""):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True


def demanded(port: int, what: str) -> int:
    """Return `port`; raises Conflict naming it and `what` it is for when somebody has it already."""
    if not is_free(port):
        raise Conflict(f"Port {port} ({what}) is busy; end what listens there or choose another.", param="port")
    return port


class FreePorts:
    """Hands out free ports, each once."""

    def __init__(self) -> None:
        self._taken: set[int] = set()

    def near(self, port: int) -> int:
        """Return the first free port from `port` upwards; raises Conflict when a hundred are busy."""
        for candidate in range(port, port + 100):
            if candidate not in self._taken and is_free(candidate):
                self._taken.add(candidate)
                return candidate
        raise Conflict(f"Ports {port} to {port + 99} are all busy.", param="port")
