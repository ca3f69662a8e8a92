"""Threads that compute: each is one worker with torch's own thread count set inside it.

Under OpenMP the count belongs to the calling thread, so setting it anywhere else has no effect on a worker; and Ray's
OMP_NUM_THREADS would leave a replica with a fractional `num_cpus` with a single thread.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch


def torch_thread(name: str, torch_threads: int | None) -> ThreadPoolExecutor:
    """Return an executor of one thread in which torch uses `torch_threads` (None: torch's own choice)."""

    def set_up() -> None:
        if torch_threads is not None:
            torch.set_num_threads(torch_threads)

    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"encore-{name}", initializer=set_up)
