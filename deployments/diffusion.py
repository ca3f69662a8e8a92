"""Diffusion: the step engine on one device. A thin shell over render.worker.

Frames go to VideoEncoder by reference, and that stores the video: the router that asked may be gone by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.measurements import Measurements
from deployments.metrics import replica_telemetry
from deployments.replica.draining import is_draining
from deployments.replica.expected_errors import expected_errors_in_one_line
from deployments.replica.freeze_gc import settle
from deployments.replica.torch_threads import torch_threads
from serve_app.core import Finished, Frames, Outcome, RenderEvent, RenderRequest, Urgency
from serve_app.errors import EncoreError, RenderCrashed, RenderFailed
from serve_app.flight.attempts import backoff
from serve_app.render.text_encoding import PromptEmbeds
from serve_app.settings import Settings
from serve_app.wiring.diffusion import LoadedEngine, load_engine, open_worker
from serve_app.wiring.model import default_spec

DRAIN_POLL_SECONDS = 0.5


class Diffusion:
    """Denoises and decodes; one replica per GPU."""

    async def __init__(self, args: dict[str, Any], video_encoder: DeploymentHandle[Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        expected_errors_in_one_line()
        settings = Settings(**args)
        telemetry = replica_telemetry()
        self._video_encoder = video_encoder
        self._drain_seconds = settings.drain_seconds
        self._max_attempts = settings.max_attempts
        threads = torch_threads(settings)
        loaded = await load_engine(settings, telemetry, torch_threads=threads)
        self._engine, self._batch_invariant = loaded.engine, loaded.batch_invariant
        await self._engine.start()
        await self._measure(settings, loaded)
        self._worker, self._latents = open_worker(settings, telemetry, loaded, self._finish)
        self._drain = asyncio.create_task(self._drain_in_time())
        settle()

    async def render(self, request: RenderRequest, embeds: PromptEmbeds) -> AsyncIterator[RenderEvent]:
        """Yield Started, Progress as it happens, and Finished; raises EncoreError."""
        async for event in self._worker.render(request, embeds):
            yield event

    def cancel(self, key: str) -> bool:
        """End the render of key(video) at its next step; False when it is not running here."""
        return self._worker.cancel(key)

    async def drop_latents(self, key: str) -> None:
        """Delete the latents of key(latents), those too that this replica is just writing."""
        await self._worker.drop_latents(key)

    def promote(self, key: str, urgency: Urgency) -> bool:
        """Let the render of key(video) hurry; False when it is not denoising here."""
        return self._worker.promote(key, urgency)

    def stats(self) -> dict[str, Any]:
        """Return the engine's load, and whether what it renders depends on its request alone."""
        return self._engine.stats() | {"batch_invariant": self._batch_invariant}

    async def check_health(self) -> None:
        """Raise when the step thread is stuck or dead; Serve then replaces this replica."""
        self._engine.check_health()

    async def __del__(self) -> None:
        self._drain.cancel()
        await self._engine.stop()
        if self._latents is not None:
            await self._latents.settled()

    async def _measure(self, settings: Settings, loaded: LoadedEngine) -> None:
        """Find how many jobs of the model's own size share a pass with profit, unless that is known of this device."""
        kept = Measurements(
            settings.measurements_file,
            model_fingerprint=loaded.card.model_fingerprint,
            device=loaded.device,
            torch_threads=torch_threads(settings),
        )
        kept.load(self._engine.pace)
        if await self._engine.measure([loaded.denoiser.latent_shape(default_spec(loaded.card))]):
            kept.save(self._engine.pace)

    async def _drain_in_time(self) -> None:
        """Wait for Serve to shut this replica down, then hand back what cannot be finished."""
        while not is_draining():  # noqa: ASYNC110 - Serve has no call for it
            await asyncio.sleep(DRAIN_POLL_SECONDS)
        await self._engine.drain(self._drain_seconds)

    async def _finish(
        self, request: RenderRequest, frames: Frames, render_seconds: float, outcome: Outcome
    ) -> Finished:
        """Have the frames encoded and stored, by another replica too when one dies over them, ever later.

        Raises RenderCrashed after `max_attempts` deaths: then it is these frames that no encoder survives.
        """
        reference = ray.put(frames)
        deaths = 0
        while True:
            try:
                finishing = self._video_encoder.finish.remote(request, reference, render_seconds, outcome)
                return cast(Finished, await finishing)
            except RayTaskError as error:
                raise (
                    error.cause if isinstance(error.cause, EncoreError) else RenderFailed("Encoding failed.")
                ) from error
            except (RayActorError, RayServeException) as error:
                deaths += 1
                if deaths >= self._max_attempts:
                    raise RenderCrashed(f"The video encoder died {deaths} times over this video.") from error
                await asyncio.sleep(backoff(deaths))
