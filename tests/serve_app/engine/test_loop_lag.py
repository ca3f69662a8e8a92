"""The lag of an event loop."""

from __future__ import annotations

import asyncio
import time

from serve_app.engine.loop_lag import LoopLag


async def test_a_blocked_loop_shows() -> None:
    """Something that blocks for 0.3 s is seen as a lag of about that; before any measurement there is none."""
    lag = LoopLag(time.monotonic)
    assert lag.stats() == {"loop_lag_p50": 0.0, "loop_lag_max": 0.0}
    watch = asyncio.create_task(lag.watch())
    await asyncio.sleep(0.2)
    time.sleep(0.3)  # noqa: ASYNC251 - that is the point
    await asyncio.sleep(0.1)
    watch.cancel()
    stats = lag.stats()
    assert stats["loop_lag_max"] > 0.2
    assert stats["loop_lag_p50"] < stats["loop_lag_max"]
