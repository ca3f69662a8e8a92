"""The round of a router: it goes on whatever happens in it, and ends when it is told to."""

from __future__ import annotations

import asyncio
import contextvars
import logging

import pytest

from serve_app.errors import Unavailable
from serve_app.service.jobs import sweeper as sweeper_module
from serve_app.service.jobs.sweeper import Sweeper
from tests.serve_app.service.rig import until


async def test_a_failing_duty_keeps_nothing_from_being_done(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that is away, and even a bug, cost that duty this round; the others, and later rounds, are done."""
    monkeypatch.setattr(sweeper_module, "ROUND_SECONDS", 0.001)
    done: list[str] = []

    async def away() -> None:
        done.append("away")
        raise Unavailable("away")

    async def broken() -> None:
        done.append("broken")
        raise ValueError("a bug")

    async def fine() -> None:
        done.append("fine")

    sweeper = Sweeper((away, broken, fine))
    sweeper.start()
    sweeper.start()
    await until(lambda: len(done) > 9)
    await sweeper.aclose()
    assert done[:6] == ["away", "broken", "fine"] * 2
    assert {record.levelno for record in caplog.records} == {logging.ERROR}
    count = len(done)
    await asyncio.sleep(0.01)
    assert len(done) == count


async def test_it_begins_in_an_empty_context() -> None:
    """Nothing of the request that happened to start the rounds goes with them."""
    request = contextvars.ContextVar[str]("request")
    seen: list[str | None] = []

    async def look() -> None:
        seen.append(request.get(None))

    request.set("the first one")
    sweeper = Sweeper((look,))
    sweeper.start()
    await until(lambda: bool(seen))
    await sweeper.aclose()
    assert seen == [None]


async def test_closing_what_never_began() -> None:
    """A router that served no job closes without a word."""
    await Sweeper(()).aclose()
