"""How much memory a device has left, and whether an error means that there was too little."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

_SAYS_SO = ("out of memory", "not enough memory", "can't allocate memory")
_MEMINFO = Path("/proc/meminfo")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether torch had too little memory; on a CPU it raises a plain RuntimeError and says so."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _SAYS_SO)


def free_bytes(device: torch.device) -> int | None:
    """Return how many bytes may still be taken on `device`, None where that is not told."""
    if device.type != "cpu":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        facts = dict(line.split(":") for line in _MEMINFO.read_text("ascii").splitlines())
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def peak_bytes(device: torch.device) -> int:
    """Return the most bytes this process has held on `device` so far; what a pass adds to it is what it needed."""
    if device.type != "cpu":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def give_back(device: torch.device) -> None:
    """Return what torch keeps in reserve to the device, so that a smaller pass can have it in one piece."""
    if device.type != "cpu":
        torch.cuda.empty_cache()
