"""Whether the API answers, asked again and again without ever waiting for it.

The question is a GET of /healthz on the API's own port, so it goes the way of a client's request: through HAProxy to a
replica. It carries the server's instance id, and only an answer that carries it too is one
(`deployments/replica/instance.py`): another program on that port, or HAProxy speaking for itself, is silence. Seconds
of silence are counted question by question, so that a machine that slept does not make one question count for hours.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Callable

from deployments.launcher.haproxy import HEADER
from deployments.launcher.host.ports import LOOPBACK

SILENCE_SECONDS = 120.0
QUESTION_SECONDS = 60.0
INTERVAL_SECONDS = 2.0
_LARGEST_ANSWER = 65_536


class ApiProbe:
    """Asks the API on `port` whether it is the server `instance`; `check` is to be called a few times a second."""

    def __init__(self, port: int, instance: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._port = port
        self._instance = instance
        self._clock = clock
        self._socket: socket.socket | None = None
        self._asked_at = clock() - INTERVAL_SECONDS
        self._sent = False
        self._answer = b""
        self._silence = 0.0

    def check(self) -> str | None:
        """Ask, or look for the answer; return what is wrong once it has been for SILENCE_SECONDS, else None."""
        now = self._clock()
        try:
            failure = self._step(now)
        except OSError as error:
            failure = error.strerror or type(error).__name__
        if failure is None:
            return None
        self.close()
        spent = min(now - self._asked_at, QUESTION_SECONDS) + INTERVAL_SECONDS
        self._silence = self._silence + spent if failure else 0.0
        self._asked_at = now
        return f"did not answer for {self._silence:.0f} s ({failure})" if self._silence > SILENCE_SECONDS else None

    def _step(self, now: float) -> str | None:
        """Do what can be done at once; return what a question came to, "" for a right answer, None if there is none."""
        if self._socket is None:
            if now - self._asked_at >= INTERVAL_SECONDS:
                self._open(now)
            return None
        if now - self._asked_at > QUESTION_SECONDS:
            return f"no answer within {QUESTION_SECONDS:.0f} s"
        readable, writable, _ = select.select([self._socket], [] if self._sent else [self._socket], [], 0)
        if writable:
            self._send(self._socket)
        if not readable:
            return None
        received = self._socket.recv(_LARGEST_ANSWER)
        self._answer += received
        head, end, _ = self._answer.partition(b"\r\n\r\n")
        if end or not received or len(self._answer) >= _LARGEST_ANSWER:
            return self._judged(head)
        return None

    def _open(self, now: float) -> None:
        self._asked_at, self._sent, self._answer = now, False, b""
        self._socket = socket.socket()
        self._socket.setblocking(False)
        if (failure := self._socket.connect_ex((LOOPBACK, self._port))) not in (0, errno.EINPROGRESS):
            raise OSError(failure, errno.errorcode[failure])

    def _send(self, connection: socket.socket) -> None:
        if failure := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(failure, errno.errorcode[failure])
        head = f"GET /healthz HTTP/1.1\r\nHost: {LOOPBACK}:{self._port}\r\n{HEADER}: {self._instance}\r\n"
        connection.send(f"{head}Connection: close\r\n\r\n".encode())
        self._sent = True

    def _judged(self, head: bytes) -> str:
        status, *fields = head.decode("latin-1").split("\r\n")
        if f"{HEADER}: {self._instance}" in (field.lower() for field in fields):
            return ""
        return f"'{status[:100]}', which is no answer of this server's"

    def close(self) -> None:
        """Ask no further for now."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None
