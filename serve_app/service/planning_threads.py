"""Plans for requests on an event loop: at once, or in a thread where an image must be read or a prompt is long.

A picture of 40 million pixels takes a second or two to decode and fit (measured: 0.6 s as JPEG, 2.6 s as WebP), and 200
to 650 MB while that lasts; so there are two threads for it, and a bound on how many images wait. A prompt of 2,000
characters takes up to 20 ms (usually one), so long ones have a thread too, which no image can hold up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from serve_app.errors import Busy
from serve_app.schema import VideoRequest
from serve_app.service.plan import KEPT_CHARS, Plan, Planner

THREADS = 2
MAX_PENDING = 32  # each holds its file's bytes
MAX_LONG = 256
"""Prompts too long to be kept by the planner are planned in a thread; so many may wait there."""
T = TypeVar("T")


class Planning:
    """One router's plans; it belongs to one event loop."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="images")
        self._text = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        self._pending = self._long = 0

    async def plan(self, request: VideoRequest) -> Plan:
        """Return what `request` means; raises what `Planner.plan` raises, and Busy when too many images wait."""
        if request.input_reference is None:
            return await self._planned(request)
        if self._pending >= MAX_PENDING:
            raise Busy("Too many images wait to be read; try again in 1 s.", retry_after=1)
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._planner.plan, request)
        finally:
            self._pending -= 1

    def close(self) -> None:
        """Read no more images."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._text.shutdown(wait=False, cancel_futures=True)

    async def aside(self, request: VideoRequest, work: Callable[[], T]) -> T:
        """Return what `work` over all fields of `request` gives, made away from the loop if there is an image."""
        if request.input_reference is None:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._text, work)

    async def _planned(self, request: VideoRequest) -> Plan:
        if len(request.prompt) + len(request.negative_prompt or "") <= KEPT_CHARS:
            return self._planner.plan(request)
        if self._long >= MAX_LONG:
            raise Busy("Too many long prompts wait to be read; try again in 1 s.", retry_after=1)
        self._long += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._text, self._planner.plan, request)
        finally:
            self._long -= 1
