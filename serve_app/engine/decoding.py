"""Latents to frames, beside the passes: a thread of its own, so that denoising goes on meanwhile.

A decode that finds too little memory beside a pass is done again in the step thread, where no pass runs meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from serve_app.core import Frames
from serve_app.engine import memory
from serve_app.engine.job import Job
from serve_app.engine.stuck import StuckCheck
from serve_app.errors import RenderCancelled, RenderFailed
from serve_app.model.model import Decoder

logger = logging.getLogger(__name__)

Decoded = tuple[Frames, Tensor]
"""The frames, and their latents on the CPU."""


class Decoding:
    """A decoder and the rules of its use."""

    def __init__(self, decoder: Decoder, stuck: StuckCheck, clock: Callable[[], float]) -> None:
        self._decoder = decoder
        self._stuck = stuck
        self._clock = clock

    async def run(
        self, job: Job, latents: Tensor, *, beside: ThreadPoolExecutor, between: ThreadPoolExecutor
    ) -> Decoded:
        """Decode in the thread `beside` the passes, or if need be `between` two of them.

        latents: float16 [channels, frames, height, width]. Raises RenderCancelled and RenderFailed.
        """
        loop = asyncio.get_running_loop()
        decoded = await loop.run_in_executor(beside, self._decode, job, latents)
        if decoded is None:
            decoded = await loop.run_in_executor(between, self._decode, job, latents)
        if job.cancelled:
            raise RenderCancelled("The render was cancelled.")
        if decoded is None:
            raise RenderFailed("There is too little memory to decode this video.")
        return decoded

    def _decode(self, job: Job, latents: Tensor) -> Decoded | None:
        """Return None when there is too little memory just now."""
        if job.cancelled:
            raise RenderCancelled("The render was cancelled.")
        began = self._clock()
        try:
            with self._stuck.running("decode"):
                if not latents.isfinite().all():
                    raise RenderFailed("The latents of this video are out of range.")
                return self._decoder.decode(latents), latents.cpu()
        except RenderFailed:
            raise
        except Exception as error:
            if memory.is_out_of_memory(error):
                logger.warning("too little memory to decode")
                return None
            logger.exception("decoding failed")
            raise RenderFailed("The model failed while decoding this video.") from error
        finally:
            job.decode_seconds = self._clock() - began
