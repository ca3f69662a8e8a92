"""Work over many independent rows on a CPU, dealt out to lanes: threads with one core each.

Lanes meet once in a pass. Threads inside of torch's operations meet a thousand times, and whenever another process
holds a core, each of those meetings waits for it: so a pass of 16 rows on two cores took 1.15 times as long beside
light work, and three times as long beside heavy work. Of few rows a lane makes a bad use, and torch's own threads
compute them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from serve_app.model.one_core import one_core_threads

# On two cores beside light work, one row a lane took 1.1 times as long as torch's own threads did, two rows 0.9 times.
_ROWS_OF_A_LANE = 2


@torch.inference_mode()
def in_lanes(compute: Callable[[slice], Tensor], rows: int, device: torch.device) -> Tensor:
    """Return `compute` of all rows, put together from consecutive slices of range(rows), in inference mode.

    It is called once, here, unless `device` is a CPU and every thread that torch may use can have some rows. What it
    raises comes through.
    """
    lanes = torch.get_num_threads()
    if device.type != "cpu" or lanes == 1 or rows < lanes * _ROWS_OF_A_LANE:
        return compute(slice(rows))
    parts = [slice(rows * lane // lanes, rows * (lane + 1) // lanes) for lane in range(lanes)]
    in_mode = torch.inference_mode()(compute)  # a mode is a thread's own
    return torch.cat(list(one_core_threads(lanes).map(in_mode, parts)))
