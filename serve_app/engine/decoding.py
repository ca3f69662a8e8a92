"""Latents to frames, beside the passes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from einops import rearrange
from torch import Tensor

from serve_app.core import Frames
from serve_app.engine.job import RenderJob
from serve_app.engine.side_work import SideWork
from serve_app.engine.watchdog import Watchdog
from serve_app.errors import RenderCancelled, RenderFailed
from serve_app.model.model import Decoder

Decoded = tuple[Frames, Tensor]
"""The frames, and their latents on the CPU."""


def scaled(frames: Frames, width: int, height: int) -> Frames:
    """Return uint8 frames [num_frames, height, width, 3], by bicubic interpolation where a model makes one size alone.

    Each number depends on its own frame alone, so that any number of threads makes the same bytes.
    """
    if frames.shape[1:3] == (height, width):
        return frames
    pixels = rearrange(torch.from_numpy(frames), "n h w c -> n c h w").float()
    made = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True).round_().clamp_(0, 255)
    found: Frames = rearrange(made.to(torch.uint8), "n c h w -> n h w c").contiguous().numpy()
    return found


class Decoding:
    """A decoder and the rules of its use."""

    def __init__(self, decoder: Decoder, stuck: Watchdog, clock: Callable[[], float]) -> None:
        self._decoder = decoder
        self._aside = SideWork("decode", "decoding this video", stuck)
        self._clock = clock

    async def run(
        self, job: RenderJob, latents: Tensor, *, beside: ThreadPoolExecutor, between: ThreadPoolExecutor
    ) -> Decoded:
        """Decode in the thread `beside` the passes, or if need be `between` two of them.

        latents: float16 [channels, frames, height, width]. Raises RenderCancelled and RenderFailed.
        """
        work = functools.partial(self._decode, job, latents)
        decoded = await self._aside.run(work, beside=beside, between=between)
        if job.cancelled:
            raise RenderCancelled("The render was cancelled.")
        if decoded is None:
            raise RenderFailed("There is too little memory to decode this video.")
        return decoded

    def _decode(self, job: RenderJob, latents: Tensor) -> Decoded:
        if job.cancelled:
            raise RenderCancelled("The render was cancelled.")
        began = self._clock()
        try:
            if not latents.isfinite().all():
                raise RenderFailed("The latents of this video are out of range.")
            return scaled(self._decoder.decode(latents), *job.size), latents.cpu()
        finally:
            job.decode_seconds = self._clock() - began
