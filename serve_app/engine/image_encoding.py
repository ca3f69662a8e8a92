"""A first frame to latents, beside the passes."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from serve_app.core import Picture
from serve_app.engine.side_work import SideWork
from serve_app.engine.watchdog import Watchdog
from serve_app.errors import RenderFailed
from serve_app.model.model import Decoder, ImageEncoder


class ImageEncoding:
    """What a model encodes images with, if it does: a Decoder that is an ImageEncoder too."""

    def __init__(self, decoder: Decoder, stuck: Watchdog) -> None:
        self._encoder = decoder if isinstance(decoder, ImageEncoder) else None
        self._aside = SideWork("encode", "encoding the image of this video", stuck)

    async def run(self, pixels: Picture, *, beside: ThreadPoolExecutor, between: ThreadPoolExecutor) -> Tensor:
        """Encode uint8 RGB [height, width, 3] to [channels, 1, h, w]; raises RenderFailed."""
        if self._encoder is None:
            raise RenderFailed("This model makes videos from text alone.")
        work = functools.partial(_encode, self._encoder, pixels)
        latents = await self._aside.run(work, beside=beside, between=between)
        if latents is None:
            raise RenderFailed("There is too little memory to encode this image.")
        return latents


def _encode(encoder: ImageEncoder, pixels: Picture) -> Tensor:
    latents = encoder.encode_image(pixels)
    if not latents.isfinite().all():
        raise RenderFailed("The latents of this image are out of range.")
    return latents
