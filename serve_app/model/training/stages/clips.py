"""The denoiser's data: clips drawn and encoded once, kept as half-precision latents in memory-mapped files.

Rendering and encoding a clip costs as much as a training step on it, so a fixed set is made first and seen many
times, under another prompt each time. Each worker makes its share of the rows; rows are drawn from (seed, frames,
row), so the files do not depend on how many workers there are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from serve_app.model.native.autoencoder import FrameEncoder
from serve_app.model.training.stages.autoencoding import to_unit
from serve_app.model.training.stages.trainer import Worker
from serve_app.model.training.world import world

CHUNK = 32


@dataclass(frozen=True)
class Clips:
    """Encoded clips of one length: latents float16 [clips, channels, frames, height, width] and their scenes."""

    latents: NDArray[np.float16]
    scenes: tuple[world.Scene, ...]

    def take(self, rows: NDArray[np.int64]) -> tuple[Tensor, list[world.Scene]]:
        """Return float32 latents and the scenes of some rows."""
        return torch.from_numpy(self.latents[rows].astype(np.float32)), [self.scenes[i] for i in rows]


def clips(
    folder: Path,
    encoder: FrameEncoder,
    *,
    count: int,
    num_frames: int,
    seed: int,
    worker: Worker,
    progress: Callable[[int, int], None],
) -> Clips:
    """Return the set from its file, or make it; every worker calls this with the same arguments."""
    path, known = folder / f"latents-{num_frames}.npy", folder / f"latents-{num_frames}.json"
    drawn = _scenes(count, num_frames, seed)
    facts = json.dumps({"seed": seed, "count": count, "encoder": _digest(encoder)})
    if not known.exists() or known.read_text() != facts:
        _make(path, encoder, drawn, num_frames, seed, worker, progress)
        if worker.rank == 0:
            known.write_text(facts)
        worker.meet()
    return Clips(np.load(path, mmap_mode="r"), drawn)


def _make(
    path: Path,
    encoder: FrameEncoder,
    drawn: tuple[world.Scene, ...],
    num_frames: int,
    seed: int,
    worker: Worker,
    progress: Callable[[int, int], None],
) -> None:
    side = world.SIDE // encoder.downscale
    shape = (len(drawn), encoder.latent_channels, num_frames, side, side)
    if worker.rank == 0:
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape).flush()
    worker.meet()
    rows = np.lib.format.open_memmap(path, mode="r+")
    starts = range(worker.rank * CHUNK, len(drawn), worker.count * CHUNK)
    for start in starts:
        rng = np.random.default_rng([seed, num_frames, start])
        rendered = world.render(drawn[start : start + CHUNK], rng, num_frames)
        rows[start : start + CHUNK] = encode(encoder, rendered).numpy()
        progress(min(start + worker.count * CHUNK, len(drawn)), len(drawn))
    rows.flush()
    worker.meet()


@torch.inference_mode()
def encode(encoder: FrameEncoder, rendered: Tensor) -> Tensor:
    """Return float16 latents [clips, channels, frames, h/d, w/d] (d: downscale) of uint8 [clips, frames, h, w, 3]."""
    device = next(encoder.parameters()).device
    pixels = to_unit(rearrange(rendered, "n f h w c -> (n f) c h w")).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        latents = encoder.eval()(pixels)
    return cast(Tensor, rearrange(latents.half().cpu(), "(n f) c h w -> n c f h w", f=rendered.shape[1]))


def _scenes(count: int, num_frames: int, seed: int) -> tuple[world.Scene, ...]:
    return world.drawn(world.scenes(held_out=False), count, np.random.default_rng([seed, num_frames]))


def _digest(encoder: FrameEncoder) -> float:
    return float(sum(parameter.detach().double().abs().sum() for parameter in encoder.parameters()))
