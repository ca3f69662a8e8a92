"""What the TextEncoder runs: the model's text encoder before a cache of prompt embeddings."""

from __future__ import annotations

import asyncio

from serve_app.cache.cache import TieredCache
from serve_app.render.text_encoding import PromptEmbedder
from serve_app.settings import Settings
from serve_app.telemetry import Telemetry
from serve_app.wiring.model import open_family, text_device
from serve_app.wiring.tiers import open_cache, open_tiers


async def open_embedder(
    settings: Settings, telemetry: Telemetry, *, torch_threads: int
) -> tuple[PromptEmbedder, TieredCache]:
    """Load the text encoder in a thread, which takes seconds; return it with its cache."""
    encoder = await asyncio.to_thread(open_family(settings).load_text_encoder, text_device(settings))
    tiers = open_tiers(settings, telemetry)
    cache = open_cache("embedding", settings, tiers, telemetry, l1_bytes=settings.embedding_l1_bytes)
    return PromptEmbedder(encoder, cache, telemetry, torch_threads=torch_threads), cache
