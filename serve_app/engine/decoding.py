"""Latents to frames, beside the passes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from serve_app.core import Frames
from serve_app.engine.aside import Aside
from serve_app.engine.job import Job
from serve_app.engine.stuck import StuckCheck
from serve_app.errors import RenderCancelled, RenderFailed
from serve_app.model.model import Decoder

Decoded = tuple[Frames, Tensor]
"""The frames, and their latents on the CPU."""


class Decoding:
    """A decoder and the rules of its use."""

    def __init__(self, decoder: Decoder, stuck: StuckCheck, clock: Callable[[], float]) -> None:
        self._decoder = decoder
        self._aside = Aside("decode", "decoding this video", stuck)
        self._clock = clock

    async def run(
        self, job: Job, latents: Tensor, *, beside: ThreadPoolExecutor, between: ThreadPoolExecutor
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

    def _decode(self, job: Job, latents: Tensor) -> Decoded:
        if job.cancelled:
            raise RenderCancelled("The render was cancelled.")
        began = self._clock()
        try:
            if not latents.isfinite().all():
                raise RenderFailed("The latents of this video are out of range.")
            return self._decoder.decode(latents), latents.cpu()
        finally:
            job.decode_seconds = self._clock() - began
