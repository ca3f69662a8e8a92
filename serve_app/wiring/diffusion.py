"""What a Diffusion replica runs: the step engine on one device, and the worker that renders on it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from serve_app.core import ModelCard
from serve_app.engine.engine import StepEngine
from serve_app.model.model import Denoiser
from serve_app.render.latents import LatentsCache
from serve_app.render.worker import Finish, RenderWorker
from serve_app.settings import Settings
from serve_app.telemetry import Telemetry
from serve_app.wiring.model import batch_invariant, compute_device, open_family
from serve_app.wiring.tiers import open_attempts, open_flight_records, open_latents, open_tiers


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine that has not started yet, with the model and the device it computes on."""

    engine: StepEngine
    card: ModelCard
    denoiser: Denoiser
    device: str
    batch_invariant: bool | None


async def load_engine(settings: Settings, telemetry: Telemetry, *, torch_threads: int) -> LoadedEngine:
    """Load the denoiser and the decoder onto the configured device, in threads, which takes seconds."""
    family, device = open_family(settings), compute_device(settings)
    denoiser = await asyncio.to_thread(family.load_denoiser, device)
    engine = StepEngine(
        denoiser,
        await asyncio.to_thread(family.load_decoder, device),
        max_batch_size=settings.max_batch_size,
        telemetry=telemetry,
        torch_threads=torch_threads,
    )
    return LoadedEngine(engine, family.card, denoiser, device, batch_invariant(settings, device))


def open_worker(
    settings: Settings, telemetry: Telemetry, loaded: LoadedEngine, finish: Finish
) -> tuple[RenderWorker, LatentsCache | None]:
    """Return what renders on the engine and hands frames to `finish`, with the cache of final latents, if any."""
    tiers = open_tiers(settings, telemetry)
    kept = open_latents(settings, tiers, telemetry)
    latents = None if kept is None else LatentsCache(kept)
    worker = RenderWorker(
        loaded.engine,
        finish,
        loaded.card.model_fingerprint,
        latents,
        open_flight_records(settings, tiers),
        open_attempts(settings, tiers, telemetry),
    )
    return worker, latents
