"""Threads with one core each, in which torch's operations use no threads of their own."""

from __future__ import annotations

import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import torch


@functools.cache
def one_core_threads(count: int, use: str = "lane") -> ThreadPoolExecutor:
    """Start `count` threads, once in a process and for a `use`, in each of which torch uses one core."""
    pool = ThreadPoolExecutor(count, thread_name_prefix=f"encore-{use}", initializer=_use_one_core)
    all_here = threading.Barrier(count)
    for started in [pool.submit(all_here.wait) for _ in range(count)]:
        started.result()
    # The last number that any thread set is what threads born later begin with; it becomes the caller's again.
    torch.set_num_threads(count)
    return pool


def _use_one_core() -> None:
    torch.get_num_threads()  # the first call in a thread sets it up, and would undo the next line
    torch.set_num_threads(1)
