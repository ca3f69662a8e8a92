"""Prompt embeddings, cached on their own: a new seed or size for a known prompt costs no text encoder pass.

The core of the TextEncoder deployment, as plain Python. Equal prompts asked for at the same time are computed once;
what is asked while the encoder is busy goes into its next call together. Keys are made of the text encoder's
fingerprint, so models that share one share its embeddings. An embedding is its prompt's real tokens alone, kept in half
precision where that loses nothing: a model that computes in it gives numbers that fit.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from opentelemetry import context as otel
from opentelemetry.context import Context
from safetensors import SafetensorError

from serve_app.cache.cache import TieredCache
from serve_app.cache.invalidation.rules import begun_at, provenance
from serve_app.core import Entry, Origin
from serve_app.engine.threads import torch_thread
from serve_app.errors import EncoreError, RenderFailed
from serve_app.flight.single_flight import Flight, SingleFlight
from serve_app.model.model import TextEncoder
from serve_app.tasks import TaskSet, detached
from serve_app.telemetry import EmbeddingServed, Telemetry, span

logger = logging.getLogger(__name__)

Embeds = npt.NDArray[np.float32]

AT_ONCE = 16
"""Prompts in one call of the encoder, at most: the first caller must not wait for all that came since."""
BEHIND_SECONDS = 0.02
"""How long after the answer an embedding is written to the shared tiers."""
UNREADABLE = (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OverflowError)
"""What safetensors and torch raise for bytes that are none of theirs: a miss, wherever they come from."""
HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class PromptEmbeds:
    """What denoising needs of the prompts: float32 arrays [num_tokens, context_dim], trimmed to real tokens."""

    prompt_embeds: Embeds
    negative_prompt_embeds: Embeds
    embedding: str
    """`hit` or `miss`: whether the prompt's own embedding was found."""


class PromptEmbedder:
    """A text encoder behind a cache; `encoder` runs in a thread of its own, one call at a time."""

    def __init__(
        self, encoder: TextEncoder, cache: TieredCache, telemetry: Telemetry, *, torch_threads: int | None = None
    ) -> None:
        self._encoder = encoder
        self._cache = cache
        self._telemetry = telemetry
        self._flights: SingleFlight[Embeds, None] = SingleFlight()
        self._thread = torch_thread("text-encoder", torch_threads)
        self._missing: dict[str, tuple[str, asyncio.Future[Embeds], Origin, Context]] = {}
        self._runner: asyncio.Task[None] | None = None
        self._writes = TaskSet()

    async def embed(self, keys: Sequence[str], prompts: Sequence[str], origin: Origin | None = None) -> PromptEmbeds:
        """Return the embeddings of [prompt, negative prompt], given with their keys; raises RenderFailed.

        origin: of the render they are for; what was begun before that one's invalidations is computed anew.
        """
        origin = origin or Origin()
        found = await asyncio.gather(*(self._find(key, origin) for key in keys))
        for embeds in found:
            self._telemetry.emit(EmbeddingServed("miss" if embeds is None else "hit"))
        missing = {key: prompt for key, prompt, embeds in zip(keys, prompts, found, strict=True) if embeds is None}
        computed = await self._compute(missing, origin) if missing else {}
        prompt_embeds, negative = (
            computed[key] if embeds is None else embeds for key, embeds in zip(keys, found, strict=True)
        )
        return PromptEmbeds(prompt_embeds, negative, "miss" if found[0] is None else "hit")

    async def settled(self) -> None:
        """Wait until every embedding that was computed is in the shared tiers."""
        if self._runner is not None:
            await asyncio.wait({self._runner})
        await self._writes.settled()

    async def _find(self, key: str, origin: Origin) -> Embeds | None:
        found = await self._cache.get(key, stale=lambda entry: begun_at(entry) < origin.not_before)
        if found is None:
            return None
        try:
            return _load(found[0])
        except UNREADABLE:
            logger.warning("a stored embedding could not be read, and is computed anew")
            await self._cache.delete(key)
            return None

    async def _compute(self, missing: dict[str, str], origin: Origin) -> dict[str, Embeds]:
        """Join the flights that are active already, and put the rest before the encoder."""

        async def one(flight: Flight[Embeds, None]) -> Embeds:
            embeds: asyncio.Future[Embeds] = asyncio.get_running_loop().create_future()
            self._missing[flight.key] = missing[flight.key], embeds, origin, otel.get_current()
            if self._runner is None or self._runner.done():
                self._runner = detached(self._run())  # on past the request that came first
            return await embeds

        flights = [self._flights.join_or_lead(key, one)[0] for key in missing]
        results = await asyncio.gather(*(flight.wait() for flight in flights))
        return {flight.key: embeds for flight, embeds in zip(flights, results, strict=True)}

    async def _run(self) -> None:
        while self._missing:
            batch = {key: self._missing.pop(key) for key in list(self._missing)[:AT_ONCE]}
            waiting = {key: embeds for key, (_, embeds, _, _) in batch.items()}
            origins = {key: (origin, trace) for key, (_, _, origin, trace) in batch.items()}
            prompts = {key: prompt for key, (prompt, _, _, _) in batch.items()}
            try:
                computed = await self._encode(prompts, origins)
            except EncoreError as error:
                if len(prompts) == 1:
                    _fail(waiting, error)
                    continue
                computed = await self._one_by_one(
                    prompts, origins, waiting
                )  # one of them may be at fault, for all others
            for key, embeds in computed.items():
                if not waiting[key].done():
                    waiting[key].set_result(embeds)

    async def _one_by_one(
        self,
        prompts: dict[str, str],
        origins: dict[str, tuple[Origin, Context]],
        waiting: dict[str, asyncio.Future[Embeds]],
    ) -> dict[str, Embeds]:
        computed: dict[str, Embeds] = {}
        for key, prompt in prompts.items():
            try:
                computed |= await self._encode({key: prompt}, origins)
            except EncoreError as error:
                _fail({key: waiting[key]}, error)
        return computed

    async def _encode(self, prompts: dict[str, str], origins: dict[str, tuple[Origin, Context]]) -> dict[str, Embeds]:
        """Compute and remember; the shared tiers are written behind the answer. Raises EncoreError."""
        began = time.perf_counter()
        try:
            with _in(origins[next(iter(prompts))][1]), span("text_encoder", prompts=len(prompts)):
                loop = asyncio.get_running_loop()
                tensors = await loop.run_in_executor(self._thread, self._encoder.encode, list(prompts.values()))
        except EncoreError:
            raise
        except Exception as error:
            raise RenderFailed(f"The text encoder failed: {type(error).__name__}.") from error
        seconds = (time.perf_counter() - began) / len(prompts)
        for key, tensor in zip(prompts, tensors, strict=True):
            origin, trace = origins[key]
            meta = provenance(origin.begun_at, origin.labels) | {"cost_seconds": round(seconds, 6)}
            entry = Entry.of(key, _dump(tensor), meta)
            self._cache.remember(entry)
            with _in(trace):  # of the request that it is for, not of the batch's first
                self._writes.spawn(self._write(entry, origin), traced=True)
        return {key: tensor.float().numpy() for key, tensor in zip(prompts, tensors, strict=True)}

    async def _write(self, entry: Entry, origin: Origin) -> None:
        """Store in the shared tiers after the answer: that takes their threads and, in part, this loop."""
        await asyncio.sleep(BEHIND_SECONDS)
        await self._cache.put(entry, not_before=origin.not_before)


@contextmanager
def _in(trace: Context) -> Iterator[None]:
    """Have spans and tasks that begin here belong to a request's trace."""
    token = otel.attach(trace)
    try:
        yield
    finally:
        otel.detach(token)


def _fail(waiting: dict[str, asyncio.Future[Embeds]], error: EncoreError) -> None:
    for embeds in waiting.values():
        if not embeds.done():
            embeds.set_exception(error)


def _dump(embeds: torch.Tensor) -> bytes:
    """Return the tensor as bytes, in the first half precision that gives every number back, else as it is."""
    for half in HALVES:
        if torch.equal(embeds.to(half).to(embeds.dtype), embeds):
            return safetensors.torch.save({"embeds": embeds.to(half).contiguous()})
    return safetensors.torch.save({"embeds": embeds.contiguous()})


def _load(entry: Entry) -> Embeds:
    tensor = safetensors.torch.load(entry.data)["embeds"]
    if tensor.ndim != 2 or not tensor.is_floating_point():
        raise ValueError("not an embedding of one prompt")
    embeds: Embeds = tensor.float().numpy()
    return embeds
