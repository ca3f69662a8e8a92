"""The load generator: keep-alive connections in a closed loop, each sending one fixed request again once answered.

A process of its own, so that it cannot slow the program that measures, and cheap, because it shares few cores with the
server under test: no HTTP library, no event loop but `selectors`, one receive buffer, bodies counted and dropped. It
reads one JSON object on standard input (fields of `Task`) and writes one on standard output (fields of `Run`).
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass

_LENGTH = re.compile(rb"\r\nContent-Length: *(\d+)\r\n", re.IGNORECASE)
_BUFFER_BYTES = 1 << 20
_SILENCE_SECONDS = 30.0
WARMUP = 3
"""The first requests of each connection, which are not timed."""


@dataclass(frozen=True, slots=True)
class Task:
    """What to send to 127.0.0.1:`port` and for how long; `request` is the whole message, Latin-1."""

    port: int
    request: str
    connections: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Run:
    """`latencies`: seconds from send to last byte, ascending; `seconds`: how long they took; `sent`: warm-up too."""

    latencies: list[float]
    seconds: float
    sent: int

    @property
    def hits(self) -> int:
        """Answers that were timed; the warm-up's are not among them."""
        return len(self.latencies)

    @property
    def throughput(self) -> float:
        """Answers per second."""
        return self.hits / self.seconds

    def percentile(self, share: float) -> float:
        """Return the latency that `share` of the answers did not exceed, in milliseconds."""
        return 1e3 * self.latencies[min(self.hits - 1, int(share * self.hits))]


def load(task: Task) -> Run:
    """Run `task` in a process of its own; raises CalledProcessError when an answer was not 200."""
    command = [sys.executable, "-S", "-E", __file__]
    done = subprocess.run(command, input=json.dumps(asdict(task)), stdout=subprocess.PIPE, text=True, check=True)
    return Run(**json.loads(done.stdout))


class Connection:
    """One keep-alive connection and the request it is waiting for."""

    def __init__(self, port: int, request: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = request
        self._filled = 0
        self._missing: int | None = None
        self.began = 0.0
        self.sent = 0

    def send(self) -> None:
        """Send the request once more."""
        self._filled, self._missing = 0, None
        self.sent += 1
        self.began = time.perf_counter()
        self.socket.sendall(self._request)

    def receive(self, buffer: bytearray) -> bool:
        """Take what has come; True when the answer is complete. Raises RuntimeError for any but a 200 with a length."""
        if self._missing is not None:
            self._missing -= self._read(memoryview(buffer))
            return self._missing <= 0
        self._filled += self._read(memoryview(buffer)[self._filled :])
        end = buffer.find(b"\r\n\r\n", 0, self._filled)
        if end >= 0:
            self._missing = self._length(bytes(buffer[: end + 2])) - (self._filled - end - 4)
        return self._missing is not None and self._missing <= 0

    def _read(self, into: memoryview) -> int:
        count = self.socket.recv_into(into)
        if not count:
            raise RuntimeError("the server closed the connection")
        return count

    @staticmethod
    def _length(head: bytes) -> int:
        length = _LENGTH.search(head)
        if not head.startswith(b"HTTP/1.1 200") or length is None:
            raise RuntimeError(f"not a 200 with a length: {head[:300]!r}")
        return int(length[1])


def run(task: Task) -> Run:
    """Send `task.request` on every connection until the time is over."""
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for _ in range(task.connections):
            connection = Connection(task.port, task.request.encode("latin-1"))
            stack.enter_context(connection.socket)
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send()
        answers = list(_answers(selector, time.perf_counter() + task.seconds))
    timed = [(began, ended) for number, began, ended in answers if number > WARMUP]
    latencies = sorted(ended - began for began, ended in timed)
    seconds = max(ended for _, ended in timed) - min(began for began, _ in timed)
    return Run(latencies, seconds, len(answers))


def _answers(selector: selectors.BaseSelector, until: float) -> Iterator[tuple[int, float, float]]:
    """Yield for each answer its number on the connection, begin and end; none begins after `until`, bar the warm-up."""
    buffers: dict[int, bytearray] = {fd: bytearray(_BUFFER_BYTES) for fd in selector.get_map()}
    while selector.get_map():
        ready = selector.select(_SILENCE_SECONDS)
        if not ready:
            raise RuntimeError(f"no answer for {_SILENCE_SECONDS:g} s")
        for key, _ in ready:
            connection: Connection = key.data
            if not connection.receive(buffers[key.fd]):
                continue
            now = time.perf_counter()
            yield connection.sent, connection.began, now
            if now < until or connection.sent <= WARMUP:
                connection.send()
            else:
                selector.unregister(key.fileobj)


if __name__ == "__main__":
    json.dump(asdict(run(Task(**json.load(sys.stdin)))), sys.stdout)
