"""What Ray would run behind a router, in the test's own process: nothing in it is a stand-in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from serve_app.cache.cache import TieredCache
from serve_app.core import RenderEvent, RenderRequest, Urgency
from serve_app.engine.engine import StepEngine
from serve_app.render.latents import LatentsCache
from serve_app.render.text_encoding import PromptEmbedder
from serve_app.render.video_encoding import VideoWriter
from serve_app.render.worker import RenderWorker
from tests.serve_app.service.rig import Rig


class LocalRenderer:
    """The whole line behind the router in this process: text encoder, engine and encoder, all real."""

    def __init__(self, rig: Rig, parts: tuple[Any, Any, Any], model_fingerprint: str) -> None:
        text_encoder, denoiser, decoder = parts
        self.embedder = PromptEmbedder(text_encoder, rig.cache(kind="embedding"), rig.telemetry)
        self.engine = StepEngine(denoiser, decoder, max_batch_size=4, telemetry=rig.telemetry, torch_threads=1)
        self.videos: TieredCache = rig.cache(l1=False)
        self.latents = LatentsCache(rig.latents())
        self.worker = RenderWorker(
            self.engine, VideoWriter(self.videos, rig.telemetry).finish, model_fingerprint, self.latents
        )

    async def render(self, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        keys, spec = request.keys, request.spec
        embeds = await self.embedder.embed((keys.prompt, keys.negative_prompt), (spec.prompt, spec.negative_prompt))
        async for event in self.worker.render(request, embeds):
            yield event

    async def cancel(self, key: str) -> None:
        self.worker.cancel(key)

    async def drop_latents(self, key: str) -> None:
        await self.worker.drop_latents(key)

    def promote(self, key: str, urgency: Urgency) -> None:
        self.worker.promote(key, urgency)

    async def stats(self) -> dict[str, Any]:
        return dict(self.engine.stats())
