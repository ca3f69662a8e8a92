"""What the setting `batch_invariant` means: whether a video's bytes depend on its request alone. No torch in here.

Where nobody chose, it is on for CPUs, where it costs little (`benchmarks/engine.py`), and off for GPUs, where nobody
has measured what it costs, and for blocks that torch.compile made, whose kernels depend on the batch. A fingerprint
says what was chosen and is silent where nothing was, so a router need not know on what its renderers compute.
"""

from __future__ import annotations

AUTO_DEVICE = "auto"


def is_on(asked: bool | None, device: str, *, torch_compile: bool = False) -> bool | None:
    """Tell whether it is on for a device; None: the setting leaves it open, and an `auto` device is not known here."""
    if asked is not None:
        return asked
    if torch_compile:
        return False
    return None if device == AUTO_DEVICE else device.partition(":")[0] == "cpu"


def of_fingerprint(asked: bool | None) -> dict[str, object]:
    """Return what a part's fingerprint says of it."""
    return {} if asked is None else {"batch_invariant": asked}
