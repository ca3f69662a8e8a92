"""A TCP proxy that misbehaves on demand: what a tier does to Encore when it, or the network before it, is broken.

It runs in a thread with an event loop of its own, so that it goes on while the program that measures is busy, and
counts what comes to it: `attempts` must stand still while a breaker is open. Connections that are there when the fault
changes live on into a silence, garbage or a trickle; going dead, refusing and healing end them, as a restart would.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from enum import StrEnum
from typing import Any, TypeVar

T = TypeVar("T")

GARBAGE = b"\xff\x00\r\n$-7\r\n*\x80 nonsense \x00\r\n" * 4
_TRICKLE_SECONDS = 0.3
"""Before each byte: less than a client waits for the next one, so that only a deadline of the whole call ends it."""
_CHUNK = 1 << 16
_FRAME = b"ENCR\x01"


class Fault(StrEnum):
    """What the proxy does; DEAD: nobody listens, so nothing can be counted either."""

    NONE = "none"
    DEAD = "dead"
    HANGING = "hanging"
    REFUSING = "refusing"
    GARBAGE = "garbage"
    SLOW = "slow"


class FaultProxy:
    """A port of 127.0.0.1 in front of `target`, the path of a Unix socket or a port of 127.0.0.1; use it in a `with`.

    Methods may be called from any thread.
    """

    def __init__(self, target: str | int) -> None:
        self.port = 0
        self.fault = Fault.NONE
        self.attempts = 0
        """Connections made, and messages sent over them, since the proxy began."""
        self.values = 0
        """Frames of stored values (serve_app/cache/envelope.py) among what was sent."""
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, *error: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def break_as(self, fault: Fault) -> None:
        """Behave like `fault` from now on."""
        self._do(self._turn(fault))

    def heal(self) -> None:
        """Pass everything on again; connections from before are gone."""
        self.break_as(Fault.NONE)

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _turn(self, fault: Fault) -> None:
        self.fault = fault
        if fault in (Fault.NONE, Fault.DEAD, Fault.REFUSING):
            await self._hang_up()
        if fault is Fault.DEAD and self._server is not None:
            self._server.close()
            self._server = None
        elif fault is not Fault.DEAD and self._server is None:
            await self._listen()

    async def _hang_up(self) -> None:
        tasks = list(self._open)
        for task, writer in self._open.items():
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._hang_up()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.attempts += 1
        if self.fault is Fault.REFUSING:
            writer.transport.abort()
            return
        task = self._loop.create_task(self._serve(reader, writer))
        self._open[task] = writer
        task.add_done_callback(self._open.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            there = await self._to_target()
            try:
                ways = [asyncio.ensure_future(self._ask(reader, writer, there[1])),
                        asyncio.ensure_future(self._answer(there[0], writer))]  # fmt: skip
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
            finally:
                there[1].transport.abort()
        writer.transport.abort()

    async def _to_target(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, str):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection("127.0.0.1", self._target)

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: asyncio.StreamWriter
    ) -> None:
        while chunk := await reader.read(_CHUNK):
            self.attempts += 1
            self.values += chunk.count(_FRAME)
            if self.fault is Fault.GARBAGE:
                writer.write(GARBAGE)
                await writer.drain()
            elif self.fault is not Fault.HANGING:
                target.write(chunk)
                await target.drain()

    async def _answer(self, target: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await target.read(_CHUNK):
            if self.fault is Fault.SLOW:
                for byte in chunk:
                    await asyncio.sleep(_TRICKLE_SECONDS)
                    writer.write(bytes([byte]))
                    await writer.drain()
            elif self.fault not in (Fault.HANGING, Fault.GARBAGE):
                writer.write(chunk)
                await writer.drain()
