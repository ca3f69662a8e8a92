"""Tasks that outlive who began them.

Under Ray Serve even a shielded task inherits the request that made it and is cancelled with it; a task with an empty
context does not. The loop itself holds tasks only weakly, so they are held here until they are done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any, TypeVar

from opentelemetry import context as otel

T = TypeVar("T")
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
