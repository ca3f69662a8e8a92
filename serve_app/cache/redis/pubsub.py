"""Messages of one Redis over one connection of this process, opened when the first channel is wanted.

Nothing rests on a message: while the connection is down they are lost, and every listener polls as well. So a lost
connection is tried again quietly, with every channel that is still wanted, once polls find that the server answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from serve_app.tasks import detached, end

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
_IDLE_SECONDS = 1.0
"""How long one wait for a message lasts; between two, channels that are new or no longer wanted are settled."""

Hear = Callable[[bytes], None]


class Subscriptions:
    """Subscriptions of one process; all methods belong to one event loop. `answers`: whether the server does."""

    def __init__(self, connect: Callable[[], Redis], answers: Callable[[], bool] = lambda: True) -> None:
        self._connect = connect
        self._answers = answers
        self._listeners: dict[str, list[Hear]] = {}
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def subscribe(self, channel: str, hear: Hear) -> Callable[[], None]:
        """Hear every message of `channel` that arrives; the returned function ends it."""
        self._listeners.setdefault(channel, []).append(hear)
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = detached(self._run())

        def unsubscribe() -> None:
            listeners = self._listeners.get(channel, [])
            if hear in listeners:
                listeners.remove(hear)
                if not listeners:
                    del self._listeners[channel]
                    self._changed.set()

        return unsubscribe

    async def aclose(self) -> None:
        """Close the connection."""
        if self._task is not None:
            await end(self._task)

    async def _run(self) -> None:
        while True:
            if not self._answers():
                await asyncio.sleep(RETRY_SECONDS)
                continue
            client = self._connect()
            try:
                async with client.pubsub(ignore_subscribe_messages=True) as wire:
                    await self._listen(wire)
            except Exception as error:  # a broken server can make the parser raise anything
                logger.debug("messages: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
            finally:
                with suppress(Exception):
                    await client.aclose()

    async def _listen(self, wire: PubSub) -> None:
        held: set[str] = set()
        settle = asyncio.ensure_future(self._changed.wait())
        message: asyncio.Future[Any] | None = None
        try:
            while True:
                self._changed.clear()
                held = await self._settle(wire, held)
                if not held:
                    await self._changed.wait()
                    continue
                if message is None:
                    message = asyncio.ensure_future(wire.get_message(timeout=_IDLE_SECONDS))
                if settle.done():
                    settle = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait({message, settle}, return_when=asyncio.FIRST_COMPLETED)
                if message.done():
                    self._deliver(message.result())
                    message = None
        finally:
            settle.cancel()
            if message is not None:
                message.cancel()
                await asyncio.gather(message, return_exceptions=True)

    async def _settle(self, wire: PubSub, held: set[str]) -> set[str]:
        wanted = set(self._listeners)
        if new := wanted - held:
            await wire.subscribe(*new)
        if old := held - wanted:
            await wire.unsubscribe(*old)
        return wanted

    def _deliver(self, message: dict[str, Any] | None) -> None:
        if message is None or message["type"] != "message":
            return
        for hear in list(self._listeners.get(message["channel"].decode(), ())):
            try:
                hear(message["data"])
            except Exception:
                logger.exception("a listener of %s failed", message["channel"])
