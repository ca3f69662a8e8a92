"""Encore's four deployments in one process, without Ray and without a model: what is left is tiers, flights and waits.

Router, text encoder, diffusion and video encoder are the product's own parts from its own wiring, each with the
connections and breakers that its process would have. A prompt is embedded and a video rendered in no time, so that
what a request takes is what the tiers made it wait; the file is really encoded, from frames that follow from the key,
so that every answer can be compared with what it must be.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import torch

from serve_app.core import Frames, Keys, Progress, RenderEvent, RenderRequest, Rule, Started, Urgency, VideoSpec
from serve_app.media import encode_mp4
from serve_app.model.native.config import DEMO_SIZES
from serve_app.render.latents import LatentsCache
from serve_app.render.text_encoding import PromptEmbedder
from serve_app.render.video_encoding import VideoWriter
from serve_app.service.service import VideoService
from serve_app.settings import Settings
from serve_app.telemetry import Telemetry
from serve_app.wiring.router import open_service
from serve_app.wiring.tiers import open_cache, open_flight_records, open_latents, open_tiers

WIDTH, HEIGHT = min(DEMO_SIZES)
FIELDS = {"size": f"{WIDTH}x{HEIGHT}", "num_frames": 8, "num_inference_steps": 2}


def frames_of(keys: Keys) -> Frames:
    """Return the frames that the render of these keys gives: black and white dots."""
    dots = np.random.default_rng(int(keys.latents[:15], 16)).integers(0, 2, (8, HEIGHT, WIDTH, 1), dtype=np.uint8)
    return np.repeat(dots * np.uint8(255), 3, axis=3)


def video_of(spec: VideoSpec, keys: Keys) -> bytes:
    """Return the file that a request for `spec` must be answered with."""
    return encode_mp4(frames_of(keys), fps=spec.fps, quality=spec.quality)


class Line:
    """Everything behind the router, as its Renderer; `renders` counts what was asked of it."""

    def __init__(self, settings: Settings, telemetry: Telemetry) -> None:
        self.renders = 0
        self.router, text, diffusion, video = self.processes = [open_tiers(settings, telemetry) for _ in range(4)]
        embeddings = open_cache("embedding", settings, text, telemetry, l1_bytes=settings.embedding_l1_bytes)
        self._embedder = PromptEmbedder(_Ones(), embeddings, telemetry)
        latents = open_latents(settings, diffusion, telemetry)
        self._latents = None if latents is None else LatentsCache(latents)
        self._videos = open_cache("video", settings, video, telemetry)
        self._finisher = VideoWriter(self._videos, telemetry, open_flight_records(settings, video))
        self._caches = [embeddings, self._videos, *([] if latents is None else [latents])]

    async def render(self, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        """Embed, look for latents, encode, store."""
        self.renders += 1
        keys, spec = request.keys, request.spec
        prompts = (spec.prompt, spec.negative_prompt)
        embeds = await self._embedder.embed((keys.prompt, keys.negative_prompt), prompts)
        yield Started(embeds.embedding)
        if self._latents is not None and await self._latents.find(keys.latents) is None:
            self._latents.keep(keys.latents, torch.zeros(4, 1, 4, 4))
        yield Progress(1, 1)
        yield await self._finisher.finish(request, frames_of(keys), 0.0)

    async def cancel(self, key: str) -> None:
        """A render takes no time; there is none to cancel."""

    async def drop_latents(self, key: str) -> None:
        """Delete them."""
        if self._latents is not None:
            await self._latents.drop(key)

    def promote(self, key: str, urgency: Urgency) -> None:
        """Nothing waits here."""

    async def stats(self) -> dict[str, Any]:
        """How many renders were asked for."""
        return {"renders": self.renders}

    async def settled(self) -> None:
        """Wait for what is written behind the answers."""
        await self._embedder.settled()
        if self._latents is not None:
            await self._latents.settled()

    async def aclose(self) -> None:
        """Write what is being written, close all connections."""
        await self.settled()
        for tiers in self.processes:
            if tiers.bloom is not None:
                await tiers.bloom.aclose()
        for cache in self._caches:
            await cache.aclose()
        for tiers in self.processes:
            if tiers.l2 is not None:
                await tiers.l2.close()


class Alone:
    """A router without others."""

    async def forget(self, keys: tuple[str, ...], job_ids: tuple[str, ...]) -> None:
        """There is nobody to tell."""

    async def learn(self, rules: tuple[Rule, ...]) -> None:
        """There is nobody to tell."""

    async def counts(self) -> tuple[str, list[dict[str, Any]]]:
        """There is nobody to ask."""
        return "router", []


def open_line(settings: Settings, telemetry: Telemetry, kind: type[Line] | None = None) -> tuple[VideoService, Line]:
    """Return a router's service and all that is behind it; close both, the service first."""
    line = (kind or Line)(settings, telemetry)
    return open_service(settings, line, Alone(), telemetry, line.router), line


class _Ones:
    """A text encoder that is fast."""

    def encode(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        """Return one token of ones per prompt."""
        return [torch.ones(1, 8) for _ in prompts]
