"""A video depends on its request alone: the real demo model through the real engine, alone and in random company."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from serve_app.core import Priority, Urgency, VideoSpec
from serve_app.engine.denoising import Start
from serve_app.engine.engine import Rendering, StepEngine
from serve_app.engine.job import NO_CHECKPOINTS, Checkpoints
from serve_app.model.model import Decoder, Denoiser, Prepared
from serve_app.model.native.native import demo
from serve_app.model.sampler import Sampler
from serve_app.telemetry import Telemetry

PROMPTS = ("a red circle", "a small blue star spinning on a black background", "一个大的黄色三角形")
SIZES = ((32, 32, 8), (48, 32, 9))


@dataclass(frozen=True, slots=True)
class Asked:
    """A job: what it is, how it comes. `after`: joins when the first job has done so many steps."""

    prompt: int
    seed: int
    guidance: float
    steps: int
    size: tuple[int, int, int]
    priority: Priority = Priority.INTERACTIVE
    after: int = 0
    resumed: bool = False

    @property
    def spec(self) -> VideoSpec:
        width, height, num_frames = self.size
        return VideoSpec(
            model="native/demo", prompt=PROMPTS[self.prompt], negative_prompt="", seed=self.seed, width=width,
            height=height, num_frames=num_frames, fps=8, num_inference_steps=self.steps, guidance_scale=self.guidance,
        )  # fmt: skip


class Cramped:
    """The denoiser on a device that has room for so many rows."""

    def __init__(self, denoiser: Denoiser, room: int) -> None:
        self._denoiser = denoiser
        self._room = room
        self.device, self.context_dim = denoiser.device, denoiser.context_dim

    def sampler(self, num_inference_steps: int) -> Sampler:
        return self._denoiser.sampler(num_inference_steps)

    def latent_shape(self, spec: VideoSpec) -> tuple[int, int, int, int]:
        return self._denoiser.latent_shape(spec)

    def prepare(self, prompt_embeds: torch.Tensor) -> Prepared:
        return self._denoiser.prepare(prompt_embeds)

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, prompts: Sequence[Prepared]) -> torch.Tensor:
        if len(prompts) > self._room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._denoiser.predict(latents, timesteps, prompts)


@functools.cache
def parts() -> tuple[Denoiser, Decoder, list[torch.Tensor]]:
    family = demo()
    embeds = family.load_text_encoder("cpu").encode(["", *PROMPTS])
    return family.load_denoiser("cpu"), family.load_decoder("cpu"), embeds


@functools.cache
def alone(asked: Asked) -> tuple[bytes, bytes, Start | None]:
    """Return frames and latents of a job that one thread renders by itself, and where its first step led."""
    kept: list[Start] = []
    (rendering,) = asyncio.run(rendered([asked], threads=1, checkpoints=Checkpoints(frozenset({1}), kept.append)))
    return (*bytes_of(rendering), kept[0] if kept else None)


def by_itself(job: Asked) -> Asked:
    return dataclasses.replace(job, after=0, priority=Priority.INTERACTIVE, resumed=False)


def bytes_of(rendering: Rendering) -> tuple[bytes, bytes]:
    return rendering.frames.tobytes(), rendering.latents.numpy().tobytes()


async def rendered(
    jobs: Sequence[Asked],
    starts: Sequence[Start | None] = (),
    *,
    threads: int,
    room: int = 64,
    most: int = 4,
    checkpoints: Checkpoints = NO_CHECKPOINTS,
) -> list[Rendering]:
    denoiser, decoder, (negative, *embeds) = parts()
    starts = starts or [None] * len(jobs)
    engine = StepEngine(
        Cramped(denoiser, room), decoder, max_batch_size=most, telemetry=Telemetry(), torch_threads=threads
    )
    await engine.start()
    stepped = [asyncio.Event() for _ in range(jobs[0].steps + 1)]
    for done in stepped[: 1 if starts[0] is None else 2]:
        done.set()

    async def one(number: int, job: Asked) -> Rendering:
        await stepped[min(job.after, jobs[0].steps - 1)].wait()
        return await engine.render(
            str(number),
            job.spec,
            embeds[job.prompt],
            negative if job.guidance != 1 else None,
            lambda step, total: None if number else stepped[step].set(),
            urgency=Urgency(job.priority),
            start=starts[number],
            checkpoints=checkpoints,
        )

    try:
        return list(await asyncio.gather(*(one(number, job) for number, job in enumerate(jobs))))
    finally:
        await engine.stop()


JOBS = st.builds(
    Asked,
    prompt=st.integers(0, 2),
    seed=st.integers(0, 2),
    guidance=st.sampled_from([1.0, 3.0, 7.5]),
    steps=st.integers(1, 3),
    size=st.sampled_from(SIZES),
    priority=st.sampled_from(list(Priority)),
    after=st.integers(0, 2),
    resumed=st.booleans(),
)
CROWD = [Asked(number % 3, number, 1.0 if number else 7.5, 3, SIZES[0], after=min(number, 2)) for number in range(4)]


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(JOBS, min_size=1, max_size=4), st.integers(1, 4), st.integers(2, 8), st.integers(1, 4))
@example(CROWD, 2, 64, 4)
@example(CROWD, 3, 2, 4)
def test_bytes_are_the_same_alone_and_in_company(jobs: list[Asked], threads: int, room: int, most: int) -> None:
    """Guided or not, of any steps and size, joining or resumed midway, in halved passes, with any number of threads."""
    jobs = [
        dataclasses.replace(job, after=job.after if number else 0, resumed=job.resumed and job.steps > 1)
        for number, job in enumerate(jobs)
    ]
    expected = [alone(by_itself(job)) for job in jobs]
    starts = [start if job.resumed else None for job, (_, _, start) in zip(jobs, expected, strict=True)]
    found = asyncio.run(rendered(jobs, starts, threads=threads, room=room, most=most))
    for job, mine, (frames, latents, _) in zip(jobs, found, expected, strict=True):
        assert bytes_of(mine) == (frames, latents), job
