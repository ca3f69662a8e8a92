"""Diffusion: the step engine on one device. A thin shell over service.rendering.

Frames go to VideoEncoder by reference, and that stores the video: the router that asked may be gone by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.metrics import replica_telemetry
from deployments.threads import torch_threads
from serve_app.core import Finished, Frames, RenderEvent, RenderRequest
from serve_app.engine.engine import StepEngine
from serve_app.errors import EncoreError, RenderFailed
from serve_app.model.model import load_family
from serve_app.service.embedding import PromptEmbeds
from serve_app.service.rendering import RenderWorker
from serve_app.service.wiring import compute_device
from serve_app.settings import Settings


class Diffusion:
    """Denoises and decodes; one replica per GPU."""

    async def __init__(self, args: dict[str, Any], video_encoder: DeploymentHandle[Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        settings = Settings(**args)
        family = load_family(settings.model)
        device = compute_device(settings)
        self._video_encoder = video_encoder
        self._engine = StepEngine(
            await asyncio.to_thread(family.load_denoiser, device),
            await asyncio.to_thread(family.load_decoder, device),
            max_batch_size=settings.max_batch_size,
            telemetry=replica_telemetry(),
            torch_threads=torch_threads(settings),
        )
        await self._engine.start()
        self._worker = RenderWorker(self._engine, self._finish, family.card.model_fingerprint)

    async def render(self, request: RenderRequest, embeds: PromptEmbeds) -> AsyncIterator[RenderEvent]:
        """Yield Started, Progress as it happens, and Finished; raises EncoreError."""
        async for event in self._worker.render(request, embeds):
            yield event

    def cancel(self, key: str) -> bool:
        """End the render of key(video) at its next step; False when it is not running here."""
        return self._worker.cancel(key)

    def stats(self) -> dict[str, Any]:
        """Return the engine's load."""
        return self._engine.stats()

    async def check_health(self) -> None:
        """Raise when the step thread is stuck or dead; Serve then replaces this replica."""
        self._engine.check_health()

    async def __del__(self) -> None:
        await self._engine.stop()

    async def _finish(self, request: RenderRequest, frames: Frames, render_seconds: float) -> Finished:
        try:
            return cast(Finished, await self._video_encoder.finish.remote(request, frames, render_seconds))
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, EncoreError) else RenderFailed("Encoding failed.") from error
        except (RayActorError, RayServeException) as error:
            raise RenderFailed("The video encoder died while it worked on this video.") from error
