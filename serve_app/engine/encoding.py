"""A first frame to latents, beside the passes, by the same rules as decoding: in a thread of its own, and if that finds
too little memory there, in the step thread, where no pass runs meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from serve_app.core import Picture
from serve_app.engine import memory
from serve_app.engine.stuck import StuckCheck
from serve_app.errors import RenderFailed
from serve_app.model.model import Decoder, ImageEncoder

logger = logging.getLogger(__name__)


class ImageEncoding:
    """What a model encodes images with, if it does: a Decoder that is an ImageEncoder too."""

    def __init__(self, decoder: Decoder, stuck: StuckCheck) -> None:
        self._encoder = decoder if isinstance(decoder, ImageEncoder) else None
        self._stuck = stuck

    async def run(self, pixels: Picture, *, beside: ThreadPoolExecutor, between: ThreadPoolExecutor) -> Tensor:
        """Encode uint8 RGB [height, width, 3] to [channels, 1, h, w]; raises RenderFailed."""
        if self._encoder is None:
            raise RenderFailed("This model makes videos from text alone.")
        loop = asyncio.get_running_loop()
        latents = await loop.run_in_executor(beside, self._encode, self._encoder, pixels)
        if latents is None:
            latents = await loop.run_in_executor(between, self._encode, self._encoder, pixels)
        if latents is None:
            raise RenderFailed("There is too little memory to encode this image.")
        return latents

    def _encode(self, encoder: ImageEncoder, pixels: Picture) -> Tensor | None:
        """Return None when there is too little memory just now."""
        try:
            with self._stuck.running("encode"):
                latents = encoder.encode_image(pixels)
                if not latents.isfinite().all():
                    raise RenderFailed("The latents of this image are out of range.")
                return latents
        except RenderFailed:
            raise
        except Exception as error:
            if memory.is_out_of_memory(error):
                logger.warning("too little memory to encode an image")
                return None
            logger.exception("encoding an image failed")
            raise RenderFailed("The model failed while encoding the image of this video.") from error
