"""Takes what a process loaded at its start out of the garbage collector's sight, for as long as the process lives.

torch, transformers and Ray leave about a million objects that never go. A full collection looks at each of them: 0.2 s
in which a router answers no request, every few hundred misses (`benchmarks/storm_miss.py`).
"""

from __future__ import annotations

import gc


def settle() -> None:
    """Collect once, then leave alone all that is alive; call it when a process has loaded what it needs."""
    gc.collect()
    gc.freeze()
