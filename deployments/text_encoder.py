"""TextEncoder: prompt embeddings with a cache of their own. A thin shell over render.text_encoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deployments.metrics import replica_telemetry
from deployments.replica.expected_errors import expected_errors_in_one_line
from deployments.replica.freeze_gc import settle
from deployments.replica.torch_threads import torch_threads
from serve_app.core import Origin
from serve_app.render.text_encoding import PromptEmbeds
from serve_app.settings import Settings
from serve_app.wiring.text_encoder import open_embedder


class TextEncoder:
    """Embeds prompt and negative prompt in one call."""

    async def __init__(self, args: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        expected_errors_in_one_line()
        settings = Settings(**args)
        telemetry = replica_telemetry()
        self._embedder, self._cache = await open_embedder(settings, telemetry, torch_threads=torch_threads(settings))
        settle()

    async def embed(self, keys: Sequence[str], prompts: Sequence[str], origin: Origin | None = None) -> PromptEmbeds:
        """Return the embeddings of [prompt, negative prompt] named by their keys; raises RenderFailed."""
        return await self._embedder.embed(keys, prompts, origin)

    def stats(self) -> dict[str, Any]:
        """Return the counts of this replica's embedding cache."""
        return self._cache.stats()

    async def __del__(self) -> None:
        await self._embedder.settled()
        await self._cache.aclose()
