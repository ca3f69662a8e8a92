"""The step engine: renders many videos at once by batching their denoising steps, not their requests.

All bookkeeping happens on the event loop, so there are no locks: a task asks the scheduler for a batch, lets one
thread run the forward pass, and on return moves the jobs, reports progress and skips those cancelled meanwhile. A
second thread decodes, so that denoising goes on. The engine knows no cache and no prompt text; whoever awaits
`render` owns the job, and cancelling that task frees its slot just like `cancel` does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from serve_app.core import Frames, VideoSpec
from serve_app.engine.denoising import Trajectory, advance
from serve_app.engine.job import Job, OnStep
from serve_app.engine.scheduler import BatchScheduler
from serve_app.engine.threads import torch_thread
from serve_app.errors import Conflict, EncoreError, RenderCancelled, RenderFailed, Unavailable
from serve_app.model.model import Decoder, Denoiser
from serve_app.telemetry.telemetry import StepRun, Telemetry
from serve_app.telemetry.tracing import span

logger = logging.getLogger(__name__)

STUCK_SECONDS = 300.0  # the slowest pass or decode we expect takes a tenth of this


@dataclass(frozen=True, slots=True, eq=False)
class Rendering:
    """A decoded video, uint8 RGB [num_frames, height, width, 3], and where its time went."""

    frames: Frames
    queue_seconds: float
    denoise_seconds: float
    decode_seconds: float
    steps: int


class StepEngine:
    """One denoiser and one decoder shared by many renders; all methods belong to one event loop."""

    def __init__(
        self,
        denoiser: Denoiser,
        decoder: Decoder,
        *,
        max_batch_size: int,
        telemetry: Telemetry,
        torch_threads: int | None,
        stuck_seconds: float = STUCK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._denoiser = denoiser
        self._decoder = decoder
        self._telemetry = telemetry
        self._torch_threads = torch_threads
        self._stuck_seconds = stuck_seconds
        self._clock = clock
        self._scheduler = BatchScheduler(max_batch_size)
        self._jobs: dict[str, Job] = {}
        self._wake = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._step_thread: ThreadPoolExecutor
        self._decode_thread: ThreadPoolExecutor
        self._busy_since: dict[str, float] = {}
        self._passes = 0
        self._steps_done = 0

    async def start(self) -> None:
        """Start both threads and begin to take jobs; raises when a thread cannot be set up."""
        self._step_thread = torch_thread("denoise", self._torch_threads)
        self._decode_thread = torch_thread("decode", self._torch_threads)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._step_thread, torch.get_num_threads)  # a broken thread shows here
        self._runner = asyncio.create_task(self._run(), name="step-engine")

    async def stop(self) -> None:
        """Fail what is not denoised yet with Unavailable; wait for the pass in flight and the decodes under way."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        runner.cancel()
        await asyncio.gather(runner, return_exceptions=True)
        await asyncio.to_thread(self._step_thread.shutdown)
        await asyncio.to_thread(self._decode_thread.shutdown)

    async def render(
        self,
        job_id: str,
        spec: VideoSpec,
        prompt_embeds: Tensor,
        negative_prompt_embeds: Tensor | None,
        on_step: OnStep,
    ) -> Rendering:
        """Denoise and decode one video; embeddings are [num_tokens, context_dim].

        Raises RenderCancelled after `cancel`, RenderFailed when the model raises or diverges, Unavailable when the
        engine is not running, Conflict when `job_id` is in the engine already, and ValueError when the spec is
        guided and `negative_prompt_embeds` is None (with guidance_scale 1.0 they are not used).
        """
        trajectory = Trajectory.of(self._denoiser, spec, prompt_embeds, negative_prompt_embeds)
        job = self._admit(Job(job_id, trajectory, on_step, queued_at=self._clock()))
        result = "failed"
        try:
            frames = await self._see_through(job)
            result = "completed"
        except (RenderCancelled, asyncio.CancelledError):
            result = "cancelled"
            raise
        finally:
            self._forget(job)
            ended = job.rendered(result, self._clock())
            self._telemetry.emit(ended)
        return Rendering(frames, ended.queue_seconds, ended.denoise_seconds, ended.decode_seconds, ended.steps)

    def cancel(self, job_id: str) -> bool:
        """Cancel a render: its slot is free at the next step; False when there is nothing to cancel."""
        job = self._jobs.get(job_id)
        if job is None or job.cancelled:
            return False
        job.cancelled = True
        self._drop(job, RenderCancelled("The render was cancelled."))
        return True

    def stats(self) -> dict[str, int]:
        """Jobs by phase, steps still to do, and counters since the start."""
        jobs = self._jobs.values()
        return {
            "queued": sum(job.started_at is None for job in jobs),
            "running": sum(job.active and job.started_at is not None for job in jobs),
            "decoding": sum(job.denoised_at is not None for job in jobs),
            "backlog_steps": self._scheduler.backlog_steps,
            "steps_done": self._steps_done,
            "passes": self._passes,
            "max_batch_size": self._scheduler.max_batch_size,
        }

    def check_health(self) -> None:
        """Raise Unavailable when the engine does not run or one of its threads is stuck."""
        if self._runner is None or self._runner.done():
            raise Unavailable("The step engine is not running.")
        for thread, since in tuple(self._busy_since.items()):
            if self._clock() - since > self._stuck_seconds:
                raise Unavailable(f"The {thread} thread has been stuck for {self._clock() - since:.0f} s.")

    def _admit(self, job: Job) -> Job:
        if self._runner is None or self._runner.done():
            raise Unavailable("The step engine is not running.", retry_after=1)
        if job.job_id in self._jobs:
            raise Conflict(f"Job {job.job_id} is being rendered already.")
        self._jobs[job.job_id] = job
        self._scheduler.add(job.job_id, job.trajectory.shape, job.trajectory.sampler.num_inference_steps)
        self._wake.set()
        return job

    async def _see_through(self, job: Job) -> Frames:
        with span("queue_wait"):
            await job.started
        with span("denoise", steps=job.trajectory.sampler.num_inference_steps):
            latents = await job.denoised
        with span("decode", num_frames=job.trajectory.shape[1]):
            if self._runner is None:
                raise Unavailable("The step engine stopped.", retry_after=1)
            loop = asyncio.get_running_loop()
            frames = await loop.run_in_executor(self._decode_thread, self._decode, job, latents)
        if job.cancelled:
            raise RenderCancelled("The render was cancelled.")
        return frames

    def _drop(self, job: Job, error: EncoreError) -> None:
        if job.active:
            self._scheduler.remove(job.job_id)
        job.fail(error)

    def _forget(self, job: Job) -> None:
        job.cancelled = True  # a decode that has not begun is not worth beginning
        if job.active:
            job.active = False
            self._scheduler.remove(job.job_id)
        del self._jobs[job.job_id]

    async def _run(self) -> None:
        try:
            while True:
                batch = [self._jobs[job_id] for job_id in self._scheduler.next_batch()]
                if batch:
                    await self._pass(batch)
                else:
                    self._wake.clear()
                    await self._wake.wait()
        finally:
            for job in self._jobs.values():
                self._drop(job, Unavailable("The step engine stopped.", retry_after=1))

    async def _pass(self, batch: list[Job]) -> None:
        began = self._clock()
        for job in batch:
            job.begin(began)
        try:
            with self._busy("denoise"):
                moved = await asyncio.get_running_loop().run_in_executor(
                    self._step_thread, advance, self._denoiser, [job.trajectory for job in batch]
                )
        except Exception:
            logger.exception("a pass over %d jobs failed", len(batch))
            for job in batch:
                self._drop(job, RenderFailed("The model failed while denoising this video."))
            return
        self._passes += 1
        self._telemetry.emit(StepRun(len(batch), self._clock() - began))
        for job, trajectory in zip(batch, moved, strict=True):
            # A job cancelled during the pass has left the scheduler, and its id may already name another one.
            if job.active:
                self._move(job, trajectory)

    def _move(self, job: Job, trajectory: Trajectory) -> None:
        if not trajectory.is_finite:
            self._drop(job, RenderFailed("The model's output for this video is not finite."))
            return
        self._steps_done += 1
        is_last = self._scheduler.advance(job.job_id)
        job.move(trajectory)
        if is_last:
            job.finish(self._clock())

    def _decode(self, job: Job, latents: Tensor) -> Frames:
        if job.cancelled:
            raise RenderCancelled("The render was cancelled.")
        began = self._clock()
        try:
            with self._busy("decode"):
                if not latents.isfinite().all():
                    raise RenderFailed("The latents of this video are out of range.")
                return self._decoder.decode(latents)
        except RenderFailed:
            raise
        except Exception as error:
            logger.exception("decoding failed")
            raise RenderFailed("The model failed while decoding this video.") from error
        finally:
            job.decode_seconds = self._clock() - began

    @contextmanager
    def _busy(self, thread: str) -> Iterator[None]:
        self._busy_since[thread] = self._clock()
        try:
            yield
        finally:
            del self._busy_since[thread]
