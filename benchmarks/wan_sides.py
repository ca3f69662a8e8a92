"""The two sides of `wan_vs_diffusers.py`: this project's parts and step engine, and diffusers' WanPipeline.

Both load the same folder in float32 on the CPU and compute in a thread of their own with as many torch threads. Ours
is what Encore's deployments run, without Ray: WanTextEncoder, the step engine with its batch limit measured at the
start, WanDecoder; it decodes in a second thread beside the passes, as in the product. The pipeline answers one request
after another, which is all that it can. As a program it loads one side, makes one video and prints the most memory
(bytes) that its process has held: `python benchmarks/wan_sides.py SIDE FOLDER WIDTHxHEIGHTxFRAMES STEPS [SETTING=...]`.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from wan_checkpoint import NEGATIVE, PROMPTS

from serve_app.core import Frames, VideoSpec
from serve_app.engine.denoising import Trajectory, advance
from serve_app.engine.engine import StepEngine
from serve_app.engine.threads import torch_thread
from serve_app.model.wan.speed import PLAIN, Speed
from serve_app.model.wan.wan import from_folder
from serve_app.telemetry import Telemetry

MAX_JOBS = 4
OURS, THEIRS = "Encore", "diffusers"


@dataclass(frozen=True, slots=True)
class Size:
    """A video's pixels and frames."""

    width: int
    height: int
    frames: int

    @property
    def tokens(self) -> int:
        """What the transformer attends over: patches of 32 x 32 pixels, of the first frame and of every four after."""
        return self.width // 32 * (self.height // 32) * ((self.frames - 1) // 4 + 1)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}"


def spec(size: Size, steps: int, number: int = 0) -> VideoSpec:
    """Return the guided request of a number."""
    return VideoSpec(
        model="wan",
        prompt=PROMPTS[number % len(PROMPTS)],
        negative_prompt=NEGATIVE,
        seed=number,
        width=size.width,
        height=size.height,
        num_frames=size.frames,
        fps=24,
        num_inference_steps=steps,
        guidance_scale=5.0,
    )


class Side(Protocol):
    """Whatever renders."""

    async def render(self, asked: VideoSpec, *, known: bool = False) -> Frames:
        """Return the video, uint8 RGB [frames, height, width, 3]; known: its prompts are encoded once and kept."""
        ...


class Encore:
    """Our parts, loaded once."""

    def __init__(self, folder: Path, threads: int, speed: Speed = PLAIN) -> None:
        family = from_folder(folder, "float32", speed)
        self.text_encoder = family.load_text_encoder("cpu")
        self.denoiser = family.load_denoiser("cpu")
        self.decoder = family.load_decoder("cpu")
        self.engine = StepEngine(
            self.denoiser, self.decoder, max_batch_size=MAX_JOBS, telemetry=Telemetry(), torch_threads=threads
        )
        self._encoding = torch_thread("text", threads)
        self._renders = 0
        self._known: dict[str, list[Tensor]] = {}

    async def render(self, asked: VideoSpec, *, known: bool = False) -> Frames:
        embeds = await asyncio.get_running_loop().run_in_executor(self._encoding, self._embeds, asked, known)
        self._renders += 1
        rendering = await self.engine.render(str(self._renders), asked, *embeds, lambda step, total: None)
        return rendering.frames

    def _embeds(self, asked: VideoSpec, known: bool) -> list[Tensor]:
        if not (known and asked.prompt in self._known):
            self._known[asked.prompt] = self.text_encoder.encode([asked.prompt, asked.negative_prompt])
        return self._known[asked.prompt]

    def latents(self, asked: VideoSpec) -> Tensor:
        """Return the final latents [channels, frames, height, width] before they are rounded."""
        job = Trajectory.of(self.denoiser, asked, *self._embeds(asked, False))
        for _ in range(asked.num_inference_steps):
            (job,) = advance(self.denoiser, [job])
        return job.checkpoint().latents

    @asynccontextmanager
    async def serving(self, size: Size | None = None) -> AsyncIterator[Encore]:
        """Run the engine for the length of a `with`; with a size, measure its passes first, as Diffusion does."""
        await self.engine.start()
        try:
            if size is not None:
                await self.engine.measure([self.denoiser.latent_shape(spec(size, 1))])
            yield self
        finally:
            await self.engine.stop()
            self._encoding.shutdown()


class Diffusers:
    """WanPipeline, loaded once."""

    def __init__(self, folder: Path, threads: int) -> None:
        from diffusers import WanPipeline

        self.pipeline: Any = WanPipeline.from_pretrained(folder)
        self.pipeline.set_progress_bar_config(disable=True)
        self._thread = torch_thread("pipeline", threads)
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    async def render(self, asked: VideoSpec, *, known: bool = False) -> Frames:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._frames, asked, known)

    def latents(self, asked: VideoSpec) -> Tensor:
        """Return the final latents [channels, frames, height, width]."""
        return cast(Tensor, self._called(asked, "latent", False)[0])

    def frames(self, asked: VideoSpec) -> Frames:
        """Render in the calling thread."""
        return self._frames(asked, False)

    def shutdown(self) -> None:
        self._thread.shutdown()

    def _frames(self, asked: VideoSpec, known: bool) -> Frames:
        return cast(Frames, (self._called(asked, "np", known)[0] * 255).round().astype(np.uint8))

    def _called(self, asked: VideoSpec, output: str, known: bool) -> Any:
        return self.pipeline(
            **(self._embeds(asked) if known else {"prompt": asked.prompt, "negative_prompt": asked.negative_prompt}),
            width=asked.width,
            height=asked.height,
            num_frames=asked.num_frames,
            num_inference_steps=asked.num_inference_steps,
            guidance_scale=asked.guidance_scale,
            generator=torch.Generator().manual_seed(asked.seed),
            output_type=output,
        ).frames

    def _embeds(self, asked: VideoSpec) -> dict[str, Tensor]:
        if asked.prompt not in self._known:
            with torch.no_grad():
                self._known[asked.prompt] = self.pipeline.encode_prompt(
                    asked.prompt, asked.negative_prompt, max_sequence_length=512
                )  # its own default of 226 is not what the pipeline asks of it
        return dict(zip(("prompt_embeds", "negative_prompt_embeds"), self._known[asked.prompt], strict=True))


@dataclass(frozen=True, slots=True)
class Served:
    """What became of a trace of requests, in seconds and videos a second from the first arrival to the last answer."""

    mean: float
    throughput: float


async def play(side: Side, jobs: Sequence[VideoSpec], apart: float) -> Served:
    """Send requests `apart` seconds from each other; a latency counts from when the request should have come."""
    began = time.monotonic()
    latencies: list[float] = []

    async def one(number: int) -> None:
        due = began + number * apart
        await asyncio.sleep(due - time.monotonic())
        await side.render(jobs[number])
        latencies.append(time.monotonic() - due)

    async with asyncio.TaskGroup() as group:
        for number in range(len(jobs)):
            group.create_task(one(number))
    return Served(sum(latencies) / len(jobs), len(jobs) / (time.monotonic() - began))


def peak_bytes(side: str, folder: Path, size: Size, steps: int, threads: int, **settings: Any) -> dict[str, int]:
    """Return {"loaded", "peak"}: the most bytes of memory of a process that loads one side, and makes one video too."""
    options = json.dumps({"threads": threads} | settings)
    command = [sys.executable, __file__, side, str(folder), str(size), str(steps), options]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(ended.stdout.splitlines()[-1])
    return found


async def _measure(side: str, folder: Path, size: Size, steps: int, threads: int, **settings: Any) -> dict[str, int]:
    asked = spec(size, steps)
    if side == THEIRS:
        theirs = Diffusers(folder, threads)
        loaded = _peak()
        await theirs.render(asked)
        theirs.shutdown()
    else:
        ours = Encore(folder, threads, Speed(**settings))
        loaded = _peak()
        async with ours.serving():
            await ours.render(asked)
    return {"loaded": loaded, "peak": _peak()}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    name, place, pixels, count, given = sys.argv[1:]
    measured = _measure(name, Path(place), Size(*map(int, pixels.split("x"))), int(count), **json.loads(given))
    print(json.dumps(asyncio.run(measured)))
