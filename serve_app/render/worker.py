"""From embeddings to a finished video on one engine, for all that ask, and also when no reader is left.

The core of the Diffusion deployment, as plain Python. Where the final latents are kept already, only the decoder and
the encoder run; where they are not, they are kept behind the answer. A render is a flight of its own: the stream that
a router reads only watches it, so the death of a router costs nothing, and a second request for the same video on this
replica watches the same flight. Only `cancel`, or the flight's record, ends a render early.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from serve_app.core import Finished, Frames, Outcome, Progress, RenderEvent, RenderRequest, Started, Urgency
from serve_app.engine.engine import Rendering, StepEngine
from serve_app.errors import CorruptEntry, FingerprintMismatch, RenderCancelled, RenderFailed, TierError
from serve_app.flight import result_json
from serve_app.flight.attempts import Attempts, End
from serve_app.flight.heartbeat import Heartbeat
from serve_app.flight.record import FlightRecords
from serve_app.flight.single_flight import Flight, FlightMap
from serve_app.media.first_frame import pixels_of
from serve_app.render.attempt import RenderAttempt
from serve_app.render.latents import LatentsCache
from serve_app.render.text_encoding import PromptEmbeds
from serve_app.tasks import detached

logger = logging.getLogger(__name__)

Finish = Callable[[RenderRequest, Frames, float, Outcome], Awaitable[Finished]]
"""Encode and store frames that took so many seconds, and that came about so."""


class RenderFlight(Flight[Finished, RenderEvent]):
    """One render on this replica: what is rendered, and the heartbeat of its record, if it has one."""

    def __init__(self, request: RenderRequest) -> None:
        super().__init__(request.keys.video)
        self.origin = request.origin
        self.heartbeat: Heartbeat | None = None

    def keep_alive(
        self, records: FlightRecords, token: int, embedding: str, promote: Callable[[Urgency], object]
    ) -> None:
        """Keep the flight's record for as long as the render runs, under the newest token of all callers."""
        if self.heartbeat is not None:
            self.heartbeat.take(token)
            return
        beat = self.heartbeat = Heartbeat(
            records, self.key, token, embedding=embedding, stop=self.task.cancel, hurry=promote
        )
        self.watch(lambda event: beat.step(event.step, event.total) if isinstance(event, Progress) else None)
        beating = detached(beat.run())
        self.task.add_done_callback(lambda _: beating.cancel())

    def token_or(self, token: int | None) -> int | None:
        """Return the newest token that the heartbeat has, `token` where there is none."""
        return token if self.heartbeat is None else self.heartbeat.token


class RenderWorker:
    """Renders on `engine` and hands frames to `finish`; refuses keys made for other weights.

    Without `latents` every video that no tier has is denoised; with `flight_records` those with a token are kept alive
    there, with `attempts` each is recorded there before its risky part begins.
    """

    def __init__(
        self,
        engine: StepEngine,
        finish: Finish,
        model_fingerprint: str,
        latents: LatentsCache | None = None,
        flight_records: FlightRecords | None = None,
        attempts: Attempts | None = None,
    ) -> None:
        self._engine = engine
        self._attempts = attempts
        self._finish = finish
        self._latents = latents
        self._model_fingerprint = model_fingerprint
        self._records = flight_records
        self._flights: FlightMap[RenderFlight] = FlightMap()

    async def render(self, request: RenderRequest, embeds: PromptEmbeds) -> AsyncIterator[RenderEvent]:
        """Yield Started, Progress as it happens, and Finished; raises what the render raised.

        Progress that was not read yet is replaced by newer progress, so a slow reader holds nothing up.
        """
        if request.model_fingerprint != self._model_fingerprint:
            raise FingerprintMismatch("This replica runs other weights; try again shortly.", retry_after=1)
        await self._cancel_outdated(request)
        flight, _ = self._flights.join_or_start(request.keys.video, lambda: self._start(request, embeds))
        if self._records is not None and request.token is not None:
            flight.keep_alive(
                self._records, request.token, embeds.embedding, lambda urgency: self.promote(flight.key, urgency)
            )
        latest = _Latest(flight)
        flight.hold()  # never released: a render does not end because its readers do
        while (event := await latest.next()) is not None:
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

    async def _cancel_outdated(self, request: RenderRequest) -> None:
        """End a render of the same key that was begun before an invalidation which the caller knows of."""
        while (flight := self._flights.find(request.keys.video)) and request.outdates(flight.origin):
            flight.task.cancel()
            await asyncio.wait({flight.task})  # the engine takes a key once

    def _start(self, request: RenderRequest, embeds: PromptEmbeds) -> RenderFlight:
        flight = RenderFlight(request)
        flight.start(lambda: self._run(request, embeds, flight))
        return flight

    async def _run(self, request: RenderRequest, embeds: PromptEmbeds, flight: RenderFlight) -> Finished:
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
        except RenderFailed as error:  # told to all waiters, wherever they are
            end = End.DONE
            if self._records is not None and flight.heartbeat is not None:
                with suppress(TierError):
                    await self._records.fail(key, flight.heartbeat.token, result_json.failed(error))
            raise
        finally:
            await attempt.close(end)

    async def _made(
        self, request: RenderRequest, embeds: PromptEmbeds, flight: RenderFlight, attempt: RenderAttempt
    ) -> Finished:
        rendering = await self._from_latents(request, attempt)
        if rendering is not None:
            return await self._finished(request, flight, rendering, Outcome.LATENTS)
        rendering = await self._denoised(request, embeds, flight, attempt)
        finished = await self._finished(request, flight, rendering, Outcome.RENDERED)
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

    async def _finished(
        self, request: RenderRequest, flight: RenderFlight, rendering: Rendering, outcome: Outcome
    ) -> Finished:
        seconds = rendering.denoise_seconds + rendering.decode_seconds
        request = replace(request, image=None, token=flight.token_or(request.token))
        return await self._finish(request, rendering.frames, seconds, outcome)


def _tensor(array: object) -> torch.Tensor:
    return torch.tensor(array)  # a copy: what comes out of Ray's object store is read-only


class _Latest:
    """Events of a flight for one slow reader: Started is kept, of Progress only the newest."""

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
        """Return the oldest pending event, None when the flight has ended and all is told."""
        while not self._pending:
            if self._flight.task.done():
                return None
            self._wake.clear()
            await self._wake.wait()
        return self._pending.pop(next(iter(self._pending)))
