"""Tasks that outlive who began them."""

from __future__ import annotations

import asyncio
import gc
from contextvars import ContextVar

import pytest
from opentelemetry import context as otel

from serve_app.tasks import detached, end

_REQUEST: ContextVar[str] = ContextVar("request", default="none")


async def _seen() -> tuple[str, object]:
    await asyncio.sleep(0)
    return _REQUEST.get(), otel.get_value("trace")


async def test_a_detached_task_knows_nothing_of_who_began_it() -> None:
    """Ray Serve cancels by a context variable: none of the caller's may be seen inside."""
    _REQUEST.set("mine")
    assert await detached(_seen()) == ("none", None)


async def test_a_traced_task_takes_the_span_along_and_nothing_else() -> None:
    """The trace stays one tree, though the task is on its own."""
    _REQUEST.set("mine")
    token = otel.attach(otel.set_value("trace", "span"))
    try:
        assert await detached(_seen(), traced=True) == ("none", "span")
    finally:
        otel.detach(token)


async def test_nobody_needs_to_hold_the_task() -> None:
    """The loop holds tasks weakly; this one is not collected in the middle of its work."""
    done = asyncio.Event()

    async def work() -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.01, lambda later=waiting: later.set_result(None))
        await waiting
        done.set()

    detached(work())
    await asyncio.sleep(0)
    gc.collect()
    async with asyncio.timeout(30):
        await done.wait()


def test_without_a_loop_the_work_is_the_callers_to_close() -> None:
    """Outside a loop RuntimeError says so, and the coroutine was not begun."""
    work = _seen()
    with pytest.raises(RuntimeError):
        detached(work)
    work.close()


async def test_a_task_is_ended_though_it_swallows_a_cancellation() -> None:
    """A loop whose client eats the first cancellation, as redis-py may, still ends, and one that fails, too."""
    swallowed = []

    async def deaf() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if swallowed:
                    raise
                swallowed.append(True)

    async def failing() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("on the way out")

    for work in (deaf(), failing()):
        task = detached(work)
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await end(task)
        assert task.done()
    assert swallowed == [True]
