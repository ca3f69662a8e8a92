"""The stores of what a router has accepted: jobs, their input images, warm-ups."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from serve_app.service.jobs.input_images import InputImageStore
from serve_app.service.jobs.store import JobStore
from serve_app.service.jobs.sweeper import Chore
from serve_app.service.warmup.store import WarmStore


async def _nothing() -> None: ...


@dataclass(frozen=True, slots=True)
class Records:
    """Nothing in them is evicted. chores: what else is to be done for them now and then. aclose: called at the end."""

    jobs: JobStore
    images: InputImageStore
    warm_ups: WarmStore
    chores: tuple[Chore, ...] = ()
    aclose: Callable[[], Awaitable[object]] = _nothing
