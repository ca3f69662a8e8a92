"""Tasks that outlive the request that began them: single ones, sets of them, and periodic ones.

Under Ray Serve even a shielded task inherits the request that made it and is cancelled with it; a task with an empty
context does not. The loop itself holds tasks only weakly, so they are held here until they are done.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any, TypeVar

from opentelemetry import context as otel

T = TypeVar("T")
logger = logging.getLogger(__name__)
_alive: set[asyncio.Task[Any]] = set()


def detached(work: Coroutine[Any, Any, T], *, traced: bool = False) -> asyncio.Task[T]:
    """Run `work` on the running loop in an empty context; `traced` takes the present span along: one trace, one tree.

    Raises RuntimeError without a running loop; `work` is then the caller's to close.
    """
    context = Context()
    if traced:
        context.run(otel.attach, otel.get_current())
    task = asyncio.get_running_loop().create_task(work, context=context)
    _alive.add(task)
    task.add_done_callback(_alive.discard)
    return task


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel `task` until it is done, however it ends; one cancellation may be lost.

    A client that is just given an answer can swallow it (redis-py, aiohttp; asyncio before 3.12 where it looks for
    timeouts), and a loop that goes on after that would never end.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)
    if not task.cancelled():
        with suppress(Exception):
            task.result()


class TaskSet:
    """Detached tasks that an owner waits for when it closes."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, T], *, traced: bool = False) -> asyncio.Task[T]:
        """Run `work` as `detached` does; it is in the set until it is done."""
        task = detached(work, traced=traced)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def settled(self) -> None:
        """Wait for the tasks that are in the set now, however they end."""
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Periodic:
    """Awaits `work` again and again, `seconds()` after it has ended; what a round raises is logged and ends nothing.

    name: the work, as a log line tells of it. expected: errors that are no surprise, logged for debugging alone.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], Awaitable[object]],
        seconds: Callable[[], float],
        expected: type[Exception] | tuple[type[Exception], ...] = (),
    ) -> None:
        self._name = name
        self._work = work
        self._seconds = seconds
        self._expected = expected
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, on the running event loop; doing so again is harmless."""
        if self._task is None:
            self._task = detached(self._run())

    async def aclose(self) -> None:
        """End, in the middle of a round if need be, and for good."""
        if self._task is not None:
            await end(self._task)

    async def _run(self) -> None:
        while True:
            try:
                await self._work()
            except self._expected as error:
                logger.debug("%s: %s", self._name, error)
            except Exception:
                logger.exception("%s failed", self._name)
            await asyncio.sleep(self._seconds())
