"""Three ways to serve the same jobs with the same weights: the step engine, one by one, and whole requests in batches.

All denoise through `engine.denoising.advance`, under the same limits of jobs and rows, and decode every video. The step
engine decodes beside its passes, as it does in the product; the others do it in the thread that denoises, before they
answer. The batches of whole requests are kinder than `@serve.batch` makes them: a batch is formed when the device is
free (Serve closes it when its time is up, even while another one runs), of one shape, and members that are done cost
nothing any more. What Serve cannot do they cannot: nobody joins, and all members are answered together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from engine_simulation import MAX_JOBS, whole_batch
from engine_traffic import SEQUENTIAL, STEP_ENGINE, Arrival, Kind, Served

from serve_app.core import ModelCard, VideoSpec
from serve_app.engine.denoising import Trajectory, advance
from serve_app.engine.engine import StepEngine
from serve_app.engine.pass_times import PassTimes, Shape
from serve_app.engine.threads import torch_thread
from serve_app.model.families import load_family
from serve_app.model.model import Decoder, Denoiser
from serve_app.telemetry import Telemetry

BATCH_WAIT = 0.01
"""Seconds that a batch which is not full waits for company when the device is free: Serve's own default."""
PROMPTS = (
    "a small red circle moving left on a white background",
    "a large blue star spinning on a black background",
    "a green heart growing against a gray backdrop",
    "a tiny pink square bouncing on a navy background",
)


class Parts:
    """The demo's denoiser and decoder on the CPU, and prompts that are encoded already."""

    def __init__(self) -> None:
        family = load_family("native/demo")
        self.card: ModelCard = family.card
        self.denoiser: Denoiser = family.load_denoiser("cpu")
        self.decoder: Decoder = family.load_decoder("cpu")
        self.negative, *self.embeds = family.load_text_encoder("cpu").encode(["", *PROMPTS])

    def shape(self, num_frames: int) -> Shape:
        """Return the latents' shape of a clip of the card's default size."""
        return self.denoiser.latent_shape(self._spec(num_frames, 1, 0, False))

    def spec(self, arrival: Arrival) -> VideoSpec:
        kind = arrival.kind
        return self._spec(kind.shape[1], kind.steps, arrival.number, kind.guided)

    def prompt_embeds(self, arrival: Arrival) -> torch.Tensor:
        return self.embeds[arrival.number % len(self.embeds)]

    def _spec(self, num_frames: int, steps: int, seed: int, guided: bool) -> VideoSpec:
        return VideoSpec(
            model=self.card.name,
            prompt="",
            negative_prompt="",
            seed=seed,
            width=self.card.width.default,
            height=self.card.height.default,
            num_frames=num_frames,
            fps=self.card.fps.default,
            num_inference_steps=steps,
            guidance_scale=self.card.guidance_scale.default if guided else 1.0,
        )


class Server(Protocol):
    """Whatever renders."""

    async def render(self, arrival: Arrival, stepped: Callable[[], None]) -> None:
        """Return when the job's video is there; `stepped` is called after each of its steps, in any thread."""
        ...


class Steps:
    """The product's engine."""

    def __init__(self, engine: StepEngine, parts: Parts) -> None:
        self.engine = engine
        self._parts = parts

    async def render(self, arrival: Arrival, stepped: Callable[[], None]) -> None:
        await self.engine.render(
            str(arrival.number),
            self._parts.spec(arrival),
            self._parts.prompt_embeds(arrival),
            self._parts.negative,
            lambda step, total: stepped(),
        )


@dataclass(frozen=True, slots=True)
class _Waiting:
    arrival: Arrival
    stepped: Callable[[], None]
    answered: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def kind(self) -> Kind:
        return self.arrival.kind


class WholeRequests:
    """Batches of up to `max_jobs` requests that begin and end together; of one, jobs one after another."""

    def __init__(self, parts: Parts, max_jobs: int, max_rows: Callable[[Shape], int], torch_threads: int) -> None:
        self._parts = parts
        self._max_jobs = max_jobs
        self._max_rows = max_rows
        self._thread = torch_thread("whole", torch_threads)
        self._waiting: list[_Waiting] = []
        self._came = asyncio.Event()

    async def render(self, arrival: Arrival, stepped: Callable[[], None]) -> None:
        waiting = _Waiting(arrival, stepped)
        self._waiting.append(waiting)
        self._came.set()
        await waiting.answered

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            while True:
                batch = await self._collect()
                await asyncio.get_running_loop().run_in_executor(self._thread, self._make, batch)
                for each in batch:
                    each.answered.set_result(None)
        finally:
            self._thread.shutdown()

    async def _collect(self) -> list[_Waiting]:
        while not self._waiting:
            self._came.clear()
            await self._came.wait()
        batch = whole_batch(self._waiting, self._max_jobs, self._max_rows)
        if len(batch) == len(self._waiting) < self._max_jobs:
            await asyncio.sleep(BATCH_WAIT)
            batch = whole_batch(self._waiting, self._max_jobs, self._max_rows)
        self._waiting = [each for each in self._waiting if each not in batch]
        return batch

    def _make(self, batch: Sequence[_Waiting]) -> None:
        parts = self._parts
        moving = [
            Trajectory.of(parts.denoiser, parts.spec(each.arrival), parts.prompt_embeds(each.arrival), parts.negative)
            for each in batch
        ]
        for step in range(max(each.kind.steps for each in batch)):
            places = [place for place, each in enumerate(batch) if each.kind.steps > step]
            for place, moved in zip(places, advance(parts.denoiser, [moving[place] for place in places]), strict=True):
                moving[place] = moved
                batch[place].stepped()
        for trajectory in moving:
            parts.decoder.decode(trajectory.final_latents())


@asynccontextmanager
async def serving(engine: str, parts: Parts, pace: PassTimes, torch_threads: int) -> AsyncIterator[Server]:
    """Run one of the three for the length of a `with`."""
    if engine == STEP_ENGINE:
        steps = step_engine(parts, pace, torch_threads)
        await steps.start()
        try:
            yield Steps(steps, parts)
        finally:
            await steps.stop()
        return
    whole = WholeRequests(parts, 1 if engine == SEQUENTIAL else MAX_JOBS, pace.limit, torch_threads)
    task = asyncio.create_task(whole.run())
    try:
        yield whole
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def step_engine(parts: Parts, pace: PassTimes, torch_threads: int) -> StepEngine:
    """Return the product's engine, not started."""
    return StepEngine(
        parts.denoiser,
        parts.decoder,
        max_batch_size=MAX_JOBS,
        telemetry=Telemetry(),
        torch_threads=torch_threads,
        pace=pace,
    )


async def play(server: Server, arrivals: Sequence[Arrival]) -> list[Served]:
    """Send a trace in real time and return what became of it; a job counts from when it should have come."""
    began = time.monotonic()
    served: list[Served] = []

    async def one(arrival: Arrival) -> None:
        steps: list[float] = []
        await asyncio.sleep(began + arrival.at - time.monotonic())
        await server.render(arrival, lambda: steps.append(time.monotonic() - began))
        served.append(Served(arrival, steps, time.monotonic() - began))

    async with asyncio.TaskGroup() as jobs:
        for arrival in arrivals:
            jobs.create_task(one(arrival))
    return served
