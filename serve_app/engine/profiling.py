"""Measures how long passes of one shape take, so that the batch limit is what this device shows, not a guess.

Rows double until throughput no longer rises, memory would run out or the most allowed is reached. Every size is run
once to warm up and then twice, of which the quicker counts: whatever disturbs a measurement makes it longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from serve_app.engine.device_memory import free_bytes, give_back, is_out_of_memory, peak_bytes
from serve_app.engine.pass_times import GAIN, Shape
from serve_app.model.model import Denoiser

_PROMPT_TOKENS = 32
_SPARE = 0.1  # the share of free memory that is left alone
_TIMES = 2


def measure(
    denoiser: Denoiser, shape: Shape, max_rows: int, *, clock: Callable[[], float] = time.perf_counter
) -> dict[int, float]:
    """Return seconds per pass by rows, 1 first; what torch raises for a single row comes through.

    shape: [channels, frames, height, width] of one job's latents.
    """
    seconds: dict[int, float] = {}
    before = peak_bytes(denoiser.device)
    rows = 1
    while rows <= max_rows:
        try:
            seconds[rows] = _pass_seconds(denoiser, shape, rows, clock)
        except Exception as error:
            if rows == 1 or not is_out_of_memory(error):
                raise
            give_back(denoiser.device)
            return seconds
        if _saturated(seconds, rows) or not _has_room(denoiser.device, before, rows, max_rows):
            return seconds
        rows *= 2
    return seconds


def _pass_seconds(denoiser: Denoiser, shape: Shape, rows: int, clock: Callable[[], float]) -> float:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn((rows, *shape), generator=generator).to(denoiser.device)
    prompt = denoiser.prepare(torch.randn((_PROMPT_TOKENS, denoiser.context_dim), generator=generator))
    taken = []
    for _ in range(1 + _TIMES):
        began = clock()
        denoiser.predict(
            latents, torch.full((rows,), 0.5, device=denoiser.device), [prompt] * rows
        ).sum().item()  # .item() waits for a GPU
        taken.append(clock() - began)
    return min(taken[1:])


def _saturated(seconds: dict[int, float], rows: int) -> bool:
    """Tell whether the last doubling but one and the last did not pay: one alone may be a bad measurement."""
    gains = [(size / seconds[size]) / (size / 2 / seconds[size // 2]) - 1 for size in (rows, rows // 2) if size > 1]
    return len(gains) == 2 and max(gains) < GAIN


def _has_room(device: torch.device, before: int, rows: int, max_rows: int) -> bool:
    """Tell whether twice as many rows will fit, judging by what these ones added to the peak."""
    free = free_bytes(device)
    return free is None or 2 * rows > max_rows or 2 * (peak_bytes(device) - before) < (1 - _SPARE) * free
