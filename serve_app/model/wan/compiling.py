"""torch.compile for a transformer's blocks: what lies between the matrix products becomes one kernel of its own.

One compiled function serves all blocks, because their weights are its arguments; sizes are symbols in it, because jobs
differ in theirs, so that a new size of video or batch is not a new compilation. A row alone is one all the same, and so
are rows with a given first frame: these are compiled here, before the server is ready, so a machine without a compiler
says so at its start and not to its first client. Compiled sums are rounded in another order: pixels may differ, so
fingerprints do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from serve_app.errors import InvalidRequest
from serve_app.model.wan.transformer import Block, prepare, run_block, turns_of, velocity


def compiled(net: Any, *, takes_image: bool = False) -> Block:
    """Return `run_block` compiled for `net`'s device and dtype, and used once; InvalidRequest when that fails."""
    block: Block = torch.compile(run_block, dynamic=True)
    try:
        for timesteps in (torch.ones(1), torch.ones(2), *([torch.ones(2, 2)] if takes_image else [])):
            _try(net, timesteps.to(net.device), block)
    except Exception as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        message = f"Setting 'torch_compile' needs what torch.compile needs; on this machine it fails: {reason[0]}"
        raise InvalidRequest(message, param="torch_compile") from error
    return block


@torch.inference_mode()
def _try(net: Any, timesteps: Tensor, block: Block) -> Tensor:
    """Run the smallest pass; sizes of one would be taken for constants, so there are two tokens each way."""
    _, height, width = net.config.patch_size
    rows = len(timesteps)
    latents = torch.zeros(rows, net.config.in_channels, 2, 2 * height, 2 * width, device=net.device)
    text = prepare(net, torch.zeros(2, net.config.text_dim))
    return velocity(net, latents, timesteps, [text] * rows, turns_of(net, latents), block)
