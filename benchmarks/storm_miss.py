"""What the whole cache path adds to a miss, beside the render and the encoding that it takes anyway.

In one process, over a real Valkey and a folder as L3, the product's own parts are joined as the deployments join them:
planning, L1, the flight record's script, L3, the embedding cache, the lease kept and the progress told in every step,
latents and video stored, the flight ended, the waiter woken. Only the two models are stand-ins of known length: an
engine of 16 steps of 5 ms and a text encoder that answers at once. What is added is the time of `generate`, less the
seconds inside the engine's `render` and inside `encode_mp4`, which are timed where they are called. Prompts and seeds
are all new. In turn with each miss the same render is done without the cache path, and what that takes beyond engine
and encoding is shown beside it. HTTP and Ray's hops are in neither: they do not belong to the cache. That all roles
share one process and its event loop makes nothing faster.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvloop
from outage_line import Alone
from pydantic import SecretStr
from storm_valkey import valkey

from deployments.replica.freeze_gc import settle
from serve_app.core import Outcome, RenderEvent, RenderRequest, Urgency, VideoSpec
from serve_app.engine.engine import Rendering
from serve_app.engine.isolation import Isolation
from serve_app.media import encode_mp4
from serve_app.model.families import load_family
from serve_app.render.latents import LatentsCache
from serve_app.render.text_encoding import PromptEmbedder
from serve_app.render.video_encoding import VideoWriter
from serve_app.render.worker import RenderWorker
from serve_app.schema import VideoRequest, parse_request
from serve_app.settings import Settings
from serve_app.telemetry import Telemetry
from serve_app.wiring.model import open_planner
from serve_app.wiring.router import open_service
from serve_app.wiring.tiers import open_cache, open_flight_records, open_latents, open_tiers

STEPS, STEP_SECONDS = 16, 0.005
WARM_UP = 10
_SQUARE = 16
_PAUSE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Added:
    """Milliseconds beyond engine and encoding, ascending: of misses, and of the same renders without the cache path."""

    misses: Sequence[float]
    direct: Sequence[float]


def percentile(ascending: Sequence[float], share: float) -> float:
    """Return the value that `share` of them do not exceed (nearest rank)."""
    return ascending[max(0, -int(-share * len(ascending) // 1) - 1)]


def measure(misses: int) -> Added:
    """Time so many misses, each in turn with the render alone."""
    with tempfile.TemporaryDirectory(prefix="encore-") as name:
        folder = Path(name)
        with valkey(folder) as port:
            settings = Settings(
                model="native/demo", redis_url=f"redis://127.0.0.1:{port}", l3_url=(folder / "l3").as_uri()
            ).model_copy(update={"secret": SecretStr("a benchmark's secret")})
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # the loop that Ray's workers run on
                return runner.run(_measured(settings, misses))


class StandInEngine:
    """The engine's `render` with a known length; `busy` tells how long the last one really took."""

    def __init__(self) -> None:
        self.busy = 0.0
        self.isolation = Isolation()

    async def render(
        self, job_id: str, spec: VideoSpec, prompt_embeds: Any, negative: Any, on_step: Any, **_: Any
    ) -> Rendering:
        """Take STEPS steps and give coloured squares of the spec's size, the same for the same seed."""
        began = time.perf_counter()
        noise = np.random.default_rng(spec.seed)
        squares = noise.integers(0, 256, (1, spec.height // _SQUARE, spec.width // _SQUARE, 3), dtype=np.uint8)
        frames = squares.repeat(_SQUARE, 1).repeat(_SQUARE, 2).repeat(spec.num_frames, 0)
        latents = torch.from_numpy(noise.standard_normal((4, spec.num_frames, spec.height // 8, spec.width // 8)))
        for step in range(1, STEPS + 1):
            await asyncio.sleep(STEP_SECONDS)
            on_step(step, STEPS)
        self.busy = time.perf_counter() - began
        return Rendering(frames, latents.half(), 0.0, self.busy, 0.0, STEPS)


class StandInTextEncoder:
    """Answers at once, one token for every prompt."""

    def encode(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        """Return [1, 768] for each."""
        return [torch.zeros((1, 768)) for _ in prompts]


class Line:
    """The deployments behind a router, in this process: serve_app's Renderer over the stand-ins."""

    def __init__(self, settings: Settings) -> None:
        telemetry = Telemetry()
        tiers = open_tiers(settings, telemetry)  # as its own process has: other connections than the router's
        self.engine = StandInEngine()
        encoder: Any = StandInTextEncoder()
        engine: Any = self.engine
        embeddings = open_cache("embedding", settings, tiers, telemetry, l1_bytes=settings.embedding_l1_bytes)
        self.embedder = PromptEmbedder(encoder, embeddings, telemetry)
        latents = open_latents(settings, tiers, telemetry)
        self.latents = None if latents is None else LatentsCache(latents)
        self._videos = open_cache("video", settings, tiers, telemetry)
        flights = open_flight_records(settings, tiers)
        fingerprint = load_family(settings.model).card.model_fingerprint
        finisher = VideoWriter(self._videos, telemetry, flights)
        self._worker = RenderWorker(engine, finisher.finish, fingerprint, self.latents, flights)

    async def render(self, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        keys, spec = request.keys, request.spec
        embeds = await self.embedder.embed((keys.prompt, keys.negative_prompt), (spec.prompt, spec.negative_prompt))
        async for event in self._worker.render(request, embeds):
            yield event

    async def cancel(self, key: str) -> None:
        self._worker.cancel(key)

    async def drop_latents(self, key: str) -> None:
        await self._worker.drop_latents(key)

    def promote(self, key: str, urgency: Urgency) -> None:
        self._worker.promote(key, urgency)

    async def stats(self) -> dict[str, Any]:
        return {}

    async def settled(self) -> None:
        """Wait for what is written behind the answers, then close the tiers."""
        await self.embedder.settled()
        if self.latents is not None:
            await self.latents.settled()
        await self._videos.aclose()


async def _measured(settings: Settings, misses: int) -> Added:
    line, planner = Line(settings), open_planner(settings)
    service = open_service(settings, line, Alone(), Telemetry())
    added: list[float] = []
    direct: list[float] = []
    settle()  # as every replica does
    for number in range(WARM_UP + misses):
        request = parse_request({"prompt": f"a red circle moves {number}", "seed": number, "size": "64x64"})
        began = time.perf_counter()
        answer = await service.generate(request)
        took = time.perf_counter() - began
        if answer.outcome is not Outcome.RENDERED or not answer.stored:
            raise RuntimeError(f"not a miss that was stored: {answer.outcome}, {answer.stored}")
        added.append(1000 * (took - line.engine.busy - answer.entry.meta["encode_seconds"]))
        await asyncio.sleep(_PAUSE_SECONDS)  # what is written behind an answer belongs to no later one
        direct.append(1000 * await _direct(request, planner.plan(request).spec))
        await asyncio.sleep(_PAUSE_SECONDS)
    await service.aclose()
    await line.settled()
    return Added(sorted(added[WARM_UP:]), sorted(direct[WARM_UP:]))


async def _direct(request: VideoRequest, spec: VideoSpec) -> float:
    """Return the seconds that the render takes without the cache path, beyond engine and encoding."""
    engine, encoder = StandInEngine(), StandInTextEncoder()
    began = time.perf_counter()
    embeds, negative = encoder.encode([spec.prompt, spec.negative_prompt])
    rendering = await engine.render("", spec, embeds, negative, lambda step, total: None)
    encoding = time.perf_counter()
    await asyncio.to_thread(encode_mp4, rendering.frames, fps=spec.fps, quality=spec.quality)
    ended = time.perf_counter()
    return ended - began - engine.busy - (ended - encoding)
