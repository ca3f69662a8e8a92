"""From embeddings to a finished video on one engine, whoever asked and whoever still listens.

The core of the Diffusion deployment, as plain Python. Where the final latents are kept already, only the decoder and
the encoder run; where they are not, they are kept behind the answer. A render is a flight of its own: the stream that
a router reads only watches it, so a router that dies meanwhile costs nothing, and a second request for the same video
on this replica watches the same flight. Only `cancel`, or the flight's record, ends a render early.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from serve_app.core import Finished, Frames, Origin, Outcome, Progress, RenderEvent, RenderRequest, Started, Urgency
from serve_app.engine.engine import Rendering, StepEngine
from serve_app.errors import CorruptEntry, FingerprintMismatch, RenderCancelled, RenderFailed, TierError
from serve_app.flight import result_json
from serve_app.flight.attempts import Attempts, End
from serve_app.flight.heartbeat import Heartbeat
from serve_app.flight.record import FlightRecords
from serve_app.flight.single_flight import Flight, SingleFlight
from serve_app.media.first_frame import pixels_of
from serve_app.render.attempt import RenderAttempt
from serve_app.render.latents import LatentsCache
from serve_app.render.text_encoding import PromptEmbeds
from serve_app.tasks import detached

logger = logging.getLogger(__name__)

Finish = Callable[[RenderRequest, Frames, float, Outcome], Awaitable[Finished]]
"""Encode and store frames that took so many seconds, and that came about so."""
RenderFlight = Flight[Finished, RenderEvent]


class RenderWorker:
    """Renders on `engine` and hands frames to `finish`; refuses keys made for other weights.

    Without `latents` every video that no tier has is denoised; with `flights` those with a token are kept alive there,
    with `attempts` each is recorded there before its risky part begins.
    """

    def __init__(
        self,
        engine: StepEngine,
        finish: Finish,
        model_fingerprint: str,
        latents: LatentsCache | None = None,
        flights: FlightRecords | None = None,
        attempts: Attempts | None = None,
    ) -> None:
        self._engine = engine
        self._attempts = attempts
        self._finish = finish
        self._latents = latents
        self._model_fingerprint = model_fingerprint
        self._records = flights
        self._flights: SingleFlight[Finished, RenderEvent] = SingleFlight()
        self._keepers: dict[str, Heartbeat] = {}
        self._origins: dict[RenderFlight, Origin] = {}

    async def render(self, request: RenderRequest, embeds: PromptEmbeds) -> AsyncIterator[RenderEvent]:
        """Yield Started, Progress as it happens, and Finished; raises what the render raised.

        Progress that nobody has read yet is replaced by newer progress, so a slow reader holds nothing up.
        """
        if request.model_fingerprint != self._model_fingerprint:
            raise FingerprintMismatch("This replica runs other weights; try again shortly.", retry_after=1)
        await self._part_from_older(request)
        flight, led = self._flights.join_or_lead(
            request.keys.video, lambda flight: self._carry(request, embeds, flight)
        )
        if led:
            self._origins[flight] = request.origin
            flight.task.add_done_callback(lambda _: self._origins.pop(flight))
        self._keep(request, embeds.embedding, flight)
        news = _Latest(flight)
        flight.hold()  # never released: a render does not end because its listeners do
        while (event := await news.next()) is not None:
            yield event
        yield await flight.result()

    def cancel(self, key: str) -> bool:
        """End the render of key(video) at its next step; False when it is not running here."""
        flight = self._flights.find(key)
        return flight is not None and flight.task.cancel()

    async def drop_latents(self, key: str) -> None:
        """Delete the latents of key(latents), those too that this replica is just writing."""
        if self._latents is not None:
            await self._latents.drop(key)

    def promote(self, key: str, urgency: Urgency) -> bool:
        """Make the render of key(video) at least as urgent as `urgency`; False when it is not denoising here."""
        return self._engine.promote(key, urgency)

    async def _part_from_older(self, request: RenderRequest) -> None:
        """End a render of the same key that was begun before an invalidation which the asker knows of."""
        while (flight := self._flights.find(request.keys.video)) and request.outdates(self._origins[flight]):
            flight.task.cancel()
            await asyncio.wait({flight.task})  # the engine takes a key once

    def _keep(self, request: RenderRequest, embedding: str, flight: RenderFlight) -> None:
        """Keep the flight's record for as long as the render runs, under the newest token that anybody asked with."""
        key, token, records = request.keys.video, request.token, self._records
        if records is None or token is None:
            return
        if key in self._keepers:
            self._keepers[key].take(token)
            return
        keeper = self._keepers[key] = Heartbeat(
            records,
            key,
            token,
            embedding=embedding,
            stop=flight.task.cancel,
            hurry=lambda urgency: self.promote(key, urgency),
        )
        flight.watch(lambda event: keeper.step(event.step, event.total) if isinstance(event, Progress) else None)
        beating = detached(keeper.run())

        def end(_: object) -> None:
            beating.cancel()
            if self._keepers.get(key) is keeper:
                del self._keepers[key]

        flight.task.add_done_callback(end)

    async def _carry(self, request: RenderRequest, embeds: PromptEmbeds, flight: RenderFlight) -> Finished:
        key = request.keys.video
        flight.publish(Started(embeds.embedding))
        attempt, end = RenderAttempt(self._engine.isolation, self._attempts, key), End.KEPT
        try:
            async with self._engine.isolation.entered(key, request.attempts):
                finished = await self._made(request, embeds, flight, attempt)
            end = End.DONE
            return finished
        except RenderCancelled:
            raise
        except RenderFailed as error:  # told to all who wait, wherever they do
            end = End.DONE
            if self._records is not None and (keeper := self._keepers.get(key)):
                with suppress(TierError):
                    await self._records.fail(key, keeper.token, result_json.failed(error))
            raise
        finally:
            await attempt.close(end)

    async def _made(
        self, request: RenderRequest, embeds: PromptEmbeds, flight: RenderFlight, attempt: RenderAttempt
    ) -> Finished:
        rendering = await self._from_latents(request, attempt)
        if rendering is not None:
            return await self._finished(request, rendering, Outcome.LATENTS)
        rendering = await self._denoised(request, embeds, flight, attempt)
        finished = await self._finished(request, rendering, Outcome.RENDERED)
        if self._latents is not None:
            self._latents.keep(
                request.keys.latents, rendering.latents, request=request, cost_seconds=rendering.denoise_seconds
            )
        return finished

    async def _from_latents(self, request: RenderRequest, attempt: RenderAttempt) -> Rendering | None:
        """Decode kept latents; None when there are none, or none that fit or decode."""
        key = request.keys.latents
        latents = None if self._latents is None else await self._latents.find(key, request=request)
        if self._latents is None or latents is None:
            return None
        await attempt.admitted()
        try:
            return await self._engine.decode(request.keys.video, request.spec, latents)
        except (ValueError, RenderFailed) as error:
            logger.warning("kept latents of %s are of no use: %s", key, error)
            await self._latents.drop(key)
            return None

    async def _denoised(
        self, request: RenderRequest, embeds: PromptEmbeds, flight: RenderFlight, attempt: RenderAttempt
    ) -> Rendering:
        return await self._engine.render(
            request.keys.video,
            request.spec,
            _tensor(embeds.prompt_embeds),
            _tensor(embeds.negative_prompt_embeds) if request.spec.guided else None,
            lambda step, total: flight.publish(Progress(step, total)),
            urgency=request.urgency,
            asked_at=request.asked_at,
            first_frame=await self._first_frame(request, attempt),
            on_begin=attempt.begin,
        )

    async def _first_frame(self, request: RenderRequest, attempt: RenderAttempt) -> Tensor | None:
        """Return the latents of the image that the video starts from, None when it starts from text."""
        spec = request.spec
        if not spec.input_reference:
            return None
        try:
            pixels = await asyncio.to_thread(
                pixels_of, request.image or b"", spec.input_reference, spec.width, spec.height
            )
        except CorruptEntry as error:
            raise RenderFailed("The image of this video did not arrive whole; send it again.") from error
        await attempt.admitted()
        return await self._engine.encode_image(pixels)

    async def _finished(self, request: RenderRequest, rendering: Rendering, outcome: Outcome) -> Finished:
        seconds = rendering.denoise_seconds + rendering.decode_seconds
        keeper = self._keepers.get(request.keys.video)
        request = replace(request, image=None, token=request.token if keeper is None else keeper.token)
        return await self._finish(request, rendering.frames, seconds, outcome)


def _tensor(array: object) -> torch.Tensor:
    return torch.tensor(array)  # a copy: what comes out of Ray's object store is read-only


class _Latest:
    """News of a flight for one slow reader: Started is kept, of Progress only the newest."""

    def __init__(self, flight: RenderFlight) -> None:
        self._pending: dict[type, RenderEvent] = {}
        self._wake = asyncio.Event()
        self._flight = flight
        flight.watch(self._hear)
        flight.task.add_done_callback(lambda _: self._wake.set())

    def _hear(self, event: RenderEvent) -> None:
        self._pending[type(event)] = event
        self._wake.set()

    async def next(self) -> RenderEvent | None:
        """Return the oldest pending news, None when the flight has landed and all is told."""
        while not self._pending:
            if self._flight.task.done():
                return None
            self._wake.clear()
            await self._wake.wait()
        return self._pending.pop(next(iter(self._pending)))
