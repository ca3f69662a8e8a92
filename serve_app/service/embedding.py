"""Prompt embeddings, cached on their own: a new seed or size for a known prompt costs no text encoder pass.

The core of the TextEncoder deployment, as plain Python. The prompt and the negative prompt come in one call; what is
missing of both is computed in one batch. Equal prompts asked for at the same time are computed once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from serve_app.cache.cache import TieredCache
from serve_app.cache.detached import detached
from serve_app.cache.single_flight import Flight, Flights
from serve_app.core import Entry
from serve_app.engine.threads import torch_thread
from serve_app.errors import EncoreError, RenderFailed
from serve_app.model.model import TextEncoder
from serve_app.telemetry import EmbeddingServed, Telemetry, span

Embeds = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PromptEmbeds:
    """What denoising needs of the prompts: float32 arrays [num_tokens, context_dim], trimmed to real tokens."""

    prompt_embeds: Embeds
    negative_prompt_embeds: Embeds
    embedding: str
    """`hit` or `miss`: whether the prompt's own embedding was found."""


class PromptEmbedder:
    """A text encoder behind a cache; `encoder` runs in a thread of its own, one batch at a time."""

    def __init__(
        self, encoder: TextEncoder, cache: TieredCache, telemetry: Telemetry, *, torch_threads: int | None = None
    ) -> None:
        self._encoder = encoder
        self._cache = cache
        self._telemetry = telemetry
        self._flights: Flights[Embeds, None] = Flights()
        self._thread = torch_thread("text-encoder", torch_threads)
        self._runners: set[asyncio.Task[None]] = set()

    async def embed(self, keys: Sequence[str], prompts: Sequence[str]) -> PromptEmbeds:
        """Return the embeddings of [prompt, negative prompt], given with their keys; raises RenderFailed."""
        found = await asyncio.gather(*(self._find(key) for key in keys))
        for embeds in found:
            self._telemetry.emit(EmbeddingServed("miss" if embeds is None else "hit"))
        missing = {key: prompt for key, prompt, embeds in zip(keys, prompts, found, strict=True) if embeds is None}
        computed = await self._compute(missing) if missing else {}
        prompt_embeds, negative = (
            computed[key] if embeds is None else embeds for key, embeds in zip(keys, found, strict=True)
        )
        return PromptEmbeds(prompt_embeds, negative, "miss" if found[0] is None else "hit")

    async def settled(self) -> None:
        """Wait until every embedding that was computed is in the shared tiers."""
        await asyncio.gather(*self._runners, return_exceptions=True)

    async def _find(self, key: str) -> Embeds | None:
        found = await self._cache.get(key)
        return None if found is None else _load(found[0])

    async def _compute(self, missing: dict[str, str]) -> dict[str, Embeds]:
        """Join the flights that are in the air already, and lead one batch for the rest."""
        batch: asyncio.Future[dict[str, Embeds]] = asyncio.get_running_loop().create_future()

        async def one(flight: Flight[Embeds, None]) -> Embeds:
            return (await asyncio.shield(batch))[flight.key]

        boarded = [self._flights.board(key, one) for key in missing]
        led = {flight.key: missing[flight.key] for flight, leads in boarded if leads}
        if led:
            self._start(self._encode(led, batch))
        results = await asyncio.gather(*(flight.wait() for flight, _ in boarded))
        return {flight.key: embeds for (flight, _), embeds in zip(boarded, results, strict=True)}

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run on past the request that led the batch."""
        runner = detached(work, traced=True)
        self._runners.add(runner)
        runner.add_done_callback(self._runners.discard)

    async def _encode(self, prompts: dict[str, str], batch: asyncio.Future[dict[str, Embeds]]) -> None:
        try:
            with span("text_encoder", prompts=len(prompts)):
                loop = asyncio.get_running_loop()
                tensors = await loop.run_in_executor(self._thread, self._encoder.encode, list(prompts.values()))
            embeds = {key: tensor.numpy() for key, tensor in zip(prompts, tensors, strict=True)}
        except EncoreError as error:
            return batch.set_exception(error)
        except Exception as error:
            return batch.set_exception(RenderFailed(f"The text encoder failed: {type(error).__name__}."))
        entries = [_dump(key, value) for key, value in embeds.items()]
        for entry in entries:
            self._cache.remember(entry)
        batch.set_result(embeds)  # the render need not wait for the shared tiers
        await asyncio.gather(*(self._cache.put(entry) for entry in entries))
        return None


def _dump(key: str, embeds: Embeds) -> Entry:
    return Entry.of(key, safetensors.numpy.save({"embeds": np.ascontiguousarray(embeds)}))


def _load(entry: Entry) -> Embeds:
    return safetensors.numpy.load(entry.data)["embeds"]
