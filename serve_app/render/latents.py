"""Final latents, kept: the same render at another frame rate or quality costs a decode, no denoising.

They are what the decoder was given, rounded to half precision, so a video from stored latents is the video from fresh
ones. They are large and seldom asked for, so they go to L3 alone, behind the answer.
"""

from __future__ import annotations

import asyncio
import logging

import safetensors.torch
import torch
from torch import Tensor

from serve_app.cache.cache import TieredCache
from serve_app.cache.invalidation.rules import begun_at, provenance
from serve_app.core import Entry, RenderRequest
from serve_app.render.text_encoding import UNREADABLE
from serve_app.tasks import detached

logger = logging.getLogger(__name__)

_AT_ONCE = 8
"""Writes under way; beyond that latents are not kept: a slow store must not fill a replica's memory."""


class LatentsCache:
    """Latents by key(latents) over one cache of the kind `latents`."""

    def __init__(self, cache: TieredCache) -> None:
        self._cache = cache
        self._writes: dict[asyncio.Task[None], str] = {}

    async def find(self, key: str, *, request: RenderRequest | None = None) -> Tensor | None:
        """Return float16 latents [channels, frames, height, width]; None when there are none that can be read.

        request: what they are for; latents begun before an invalidation of its video do not count.
        """
        not_before = self._not_before(request)
        found = await self._cache.get(key)
        if found is None or begun_at(found[0]) < not_before:
            return None
        try:
            return _load(found[0].data)
        except UNREADABLE:
            logger.warning("stored latents of %s could not be read", key)
            await self.drop(key)
            return None

    def keep(
        self, key: str, latents: Tensor, *, request: RenderRequest | None = None, cost_seconds: float = 0.0
    ) -> bool:
        """Store latents in the background; False when too many writes are under way.

        request: what they were made for, whose invalidations they share. cost_seconds: what denoising them took, which
        is what keeping them is worth.
        """
        if len(self._writes) >= _AT_ONCE:
            return False
        task = detached(self._write(key, latents, request, cost_seconds), traced=True)
        self._writes[task] = key
        task.add_done_callback(self._writes.pop)
        return True

    async def drop(self, key: str) -> None:
        """Delete latents, those too that are just being written."""
        await asyncio.gather(*(task for task, of in self._writes.items() if of == key), return_exceptions=True)
        await self._cache.delete(key)

    async def settled(self) -> None:
        """Wait for the writes under way."""
        await asyncio.gather(*self._writes, return_exceptions=True)

    async def _write(self, key: str, latents: Tensor, request: RenderRequest | None, cost_seconds: float) -> None:
        data = await asyncio.to_thread(_dump, latents)
        meta = {"shape": list(latents.shape), "cost_seconds": round(cost_seconds, 4)}
        if request is not None:
            meta |= provenance(request.begun_at, request.labels)
        await self._cache.put(Entry.of(key, data, meta), not_before=self._not_before(request))

    def _not_before(self, request: RenderRequest | None) -> int:
        if request is None:
            return 0
        self._cache.rules.learn(request.rules)
        return self._cache.rules.not_before(request.labels)


def _dump(latents: Tensor) -> bytes:
    return safetensors.torch.save({"latents": latents.to("cpu", torch.float16).contiguous()})


def _load(data: bytes) -> Tensor:
    latents = safetensors.torch.load(data)["latents"]
    if latents.ndim != 4 or latents.dtype != torch.float16:
        raise ValueError("not latents of one video")
    return latents
