"""Plans for requests on an event loop: at once, or in a thread of their own where an image must be read first.

A picture of 40 million pixels takes a second or two to decode and fit (measured: 0.6 s as JPEG, 2.6 s as WebP), and 200
to 650 MB while that lasts; so there are two threads for it, and a bound on how many images wait.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from serve_app.errors import Busy
from serve_app.schema import VideoRequest
from serve_app.service.plan import Plan, Planner

THREADS = 2
MAX_PENDING = 32  # each holds its file's bytes


class Planning:
    """One router's plans; it belongs to one event loop."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="images")
        self._pending = 0

    async def plan(self, request: VideoRequest) -> Plan:
        """Return what `request` means; raises what `Planner.plan` raises, and Busy when too many images wait."""
        if request.input_reference is None:
            return self._planner.plan(request)
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
