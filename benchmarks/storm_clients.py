"""Many clients at once, each with one request that it repeats until it is answered, as people and SDKs do.

Plain sockets under asyncio: a thousand clients must not take the processor from the server beside them. A broken
connection, a 429 and any 5xx are asked again, with growing pauses, and counted by kind; anything else is an error of
the benchmark. The digest is taken from the bytes that came, not from what the server says of them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deployments.replica.instance import HEADER

Fields = Mapping[str, Any]
PATH = "/v1/videos/sync"
BROKEN = "broken connection"
PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds before each repeat; the last one goes on, and all are spread by half."""
LONGEST_SECONDS = 420.0


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """How one client was answered in the end: the bytes' digest, whether the ETag is it, how, and after how long."""

    digest: str
    etag_is_digest: bool
    outcome: str
    seconds: float
    asked_again: int


@dataclass(slots=True)
class Crowd:
    """Clients of one server; `sent` counts requests whose last byte was sent, `again` why requests were repeated.

    instance: the mark by which the server's own routers know requests that are for them; asked directly, they want it.
    """

    port: int
    path: str = PATH
    method: str = "POST"
    instance: str = ""
    sent: int = 0
    answered: int = 0
    again: Counter[str] = field(default_factory=Counter)

    async def ask(self, fields: Fields, *, first_port: int | None = None) -> Answer:
        """Ask until the answer is a 200; raises RuntimeError for an answer that nobody would repeat, or after long.

        first_port: where the first try goes instead, to one router past the balancer.
        """
        began = time.monotonic()
        tries = 0
        while time.monotonic() - began < LONGEST_SECONDS:
            try:
                reply = await self._send(first_port if tries == 0 and first_port is not None else self.port, fields)
            except (OSError, EOFError, ValueError):
                self.again[BROKEN] += 1
            else:
                if reply.status == 200:
                    self.answered += 1
                    return _answer(reply, time.monotonic() - began, tries)
                self.again[_reason(reply)] += 1
            await asyncio.sleep(PAUSES[min(tries, len(PAUSES) - 1)] * random.uniform(0.5, 1.5))
            tries += 1
        raise RuntimeError(f"no answer in {LONGEST_SECONDS:g} s; asked again: {dict(self.again)}")

    async def hang_up(self, fields: Fields, when: asyncio.Event) -> None:
        """Send a request and close the connection when `when` is set, without waiting for the answer."""
        _, writer = await self._request(self.port, fields)
        await when.wait()
        writer.close()
        await writer.wait_closed()

    async def _send(self, port: int, fields: Fields) -> Reply:
        reader, writer = await self._request(port, fields)
        try:
            return await _reply(reader)
        finally:
            writer.close()

    async def _request(self, port: int, fields: Fields) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps(fields) if self.method == "POST" else ""
        head = f"{self.method} {self.path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += f"{HEADER}: {self.instance}\r\n" if self.instance else ""
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(f"{head}{body}".encode())
        await writer.drain()
        self.sent += 1
        return reader, writer


async def _reply(reader: asyncio.StreamReader) -> Reply:
    """Read one answer; raises EOFError when the connection ends before it does, ValueError for no HTTP."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = headers.get("content-length")
    body = await (reader.read() if length is None else reader.readexactly(int(length)))
    return Reply(int(first.split(" ")[1]), headers, body)


def _answer(reply: Reply, seconds: float, asked_again: int) -> Answer:
    digest = hashlib.sha256(reply.body).hexdigest()
    etag = reply.headers.get("etag", "").strip('"')
    return Answer(digest, etag == digest, reply.headers.get("x-encore-outcome", ""), seconds, asked_again)


def _reason(reply: Reply) -> str:
    """Return why a request is repeated: the error's code, or the balancer's bare status; raises RuntimeError."""
    if reply.status != 429 and reply.status < 500:
        raise RuntimeError(f"not an answer to repeat for: {reply.status} {reply.body[:300]!r}")
    try:
        return f"{reply.status} {json.loads(reply.body)['error']['code']}"
    except (ValueError, KeyError, TypeError):
        return f"{reply.status}"
