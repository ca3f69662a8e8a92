"""A real Valkey cluster of three nodes on 127.0.0.1, each with a third of the slots and no replica."""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path
from typing import Any

import redis

from tests.conftest import _start, free_ports

SLOTS = 16_384
_UP_SECONDS = 30


class ValkeyCluster:
    """Three nodes in folders under `folder`; `url` names two of them, which know the third."""

    def __init__(self, binary: Path, folder: Path) -> None:
        self._binary = binary
        self._folder = folder
        ports = free_ports(6)
        self.ports, self._buses = ports[:3], ports[3:]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        try:
            for number in range(3):
                (folder / str(number)).mkdir()
                self.start(number)
            self._join()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in self.ports[:2])

    def node_of(self, key: str) -> int:
        """Return the number of the node that a key is on."""
        with self._client(0) as client:
            slot = int(client.execute_command("CLUSTER", "KEYSLOT", key))
        return next(number for number in range(3) if slot in _share(number))

    def kill(self, number: int) -> None:
        """End one node at once (SIGKILL)."""
        process = self._processes.pop(number)
        process.kill()
        process.wait()

    def start(self, number: int) -> None:
        """Start a node, again if it was killed; it remembers its place in the cluster."""
        folder = self._folder / str(number)
        command = [str(self._binary), "--port", str(self.ports[number]), "--bind", "127.0.0.1", "--dir", str(folder)]
        command += ["--cluster-enabled", "yes", "--cluster-port", str(self._buses[number]), "--save", ""]
        command += ["--cluster-node-timeout", "1000", "--cluster-require-full-coverage", "no"]
        self._processes[number] = _start(command, folder / "log")
        _until(lambda: self._answers(number))

    def flush(self) -> None:
        """Empty all nodes."""
        for number in range(3):
            with self._client(number) as client:
                client.flushall()

    def wait_until_whole(self) -> None:
        """Wait until every node sees all slots served."""
        _until(lambda: all(self._sees_all(number) for number in range(3)))

    def commands(self, name: str) -> int:
        """Return how many commands of one name all nodes have run."""
        total = 0
        for number in range(3):
            with self._client(number) as client:
                stats: dict[str, Any] = client.info("commandstats").get(f"cmdstat_{name}", {})
                total += int(stats.get("calls", 0))
        return total

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()

    def _join(self) -> None:
        for number in range(3):
            with self._client(number) as client:
                share = _share(number)
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", share.start, share.stop - 1)
        with self._client(0) as client:
            for number in (1, 2):
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", self.ports[number], self._buses[number])
        self.wait_until_whole()

    def _client(self, number: int) -> redis.Redis:
        return redis.Redis(port=self.ports[number], socket_timeout=10, retry=None)

    def _answers(self, number: int) -> bool:
        with contextlib.suppress(redis.RedisError), self._client(number) as client:
            return bool(client.ping())
        return False

    def _sees_all(self, number: int) -> bool:
        with self._client(number) as client:
            info = client.execute_command("CLUSTER INFO")
        return (info["cluster_state"], info["cluster_slots_ok"], info["cluster_known_nodes"]) == ("ok", str(SLOTS), "3")


def _share(number: int) -> range:
    return range(SLOTS * number // 3, SLOTS * (number + 1) // 3)


def _until(true: Any) -> None:
    end = time.monotonic() + _UP_SECONDS
    while not true():
        if time.monotonic() > end:
            raise RuntimeError("the cluster did not come up")
        time.sleep(0.05)
