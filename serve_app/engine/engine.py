"""The step engine: renders many videos at once by batching their denoising steps, not their requests.

All bookkeeping happens on the event loop, so there are no locks: a task asks the scheduler for a batch, lets one
thread run the forward pass, and on return moves the jobs, reports progress and skips those cancelled meanwhile. A
second thread decodes, so that denoising goes on. The engine knows no cache and no prompt text; whoever awaits
`render` owns the job, and cancelling that task frees its slot just like `cancel` does. A pass that finds too little
memory is run again with half as many rows: trajectories are values, so no job loses a step.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from serve_app.clock import steady
from serve_app.core import Frames, Picture, Urgency, VideoSpec
from serve_app.engine import device_memory, profiling
from serve_app.engine.decoding import Decoded, Decoding
from serve_app.engine.denoising import Start, Trajectory, advance
from serve_app.engine.image_encoding import ImageEncoding
from serve_app.engine.isolation import Isolation
from serve_app.engine.job import NO_CHECKPOINTS, Checkpoints, OnBegin, OnStep, RenderJob
from serve_app.engine.loop_lag import LoopLag
from serve_app.engine.pass_times import PassTimes, Shape
from serve_app.engine.scheduler import BatchScheduler
from serve_app.engine.threads import torch_thread
from serve_app.engine.watchdog import Watchdog
from serve_app.errors import Conflict, EncoreError, RenderCancelled, RenderFailed, Unavailable
from serve_app.model.model import Decoder, Denoiser
from serve_app.telemetry import StepRun, Telemetry, span

logger = logging.getLogger(__name__)

STUCK_SECONDS = 300.0  # the slowest pass or decode we expect takes a tenth of this
_ROWS_OF_A_JOB = 2
_DRAIN_SHARE = 0.8  # of the time to drain is denoised in; the rest is for what decodes then


@dataclass(frozen=True, slots=True, eq=False)
class Rendering:
    """A decoded video, uint8 RGB [num_frames, height, width, 3], its latents, and where its time went.

    latents: float16 [channels, frames, height, width] on the CPU, those that were decoded. steps: denoised here.
    """

    frames: Frames
    latents: Tensor
    queue_seconds: float
    denoise_seconds: float
    decode_seconds: float
    steps: int


class StepEngine:
    """One denoiser and one decoder shared by many renders; all methods belong to one event loop.

    max_batch_size: most jobs in a pass. pace: what is known of passes, for limits and estimates; absent: nothing yet.
    clock: monotonic seconds; wall: Unix seconds that never go back, in which jobs are asked for and due.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        decoder: Decoder,
        *,
        max_batch_size: int,
        telemetry: Telemetry,
        torch_threads: int | None,
        pace: PassTimes | None = None,
        stuck_seconds: float = STUCK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = steady,
    ) -> None:
        self._denoiser = denoiser
        self._telemetry = telemetry
        self._torch_threads = torch_threads
        self._clock = clock
        self._wall = wall
        self._pace = pace or PassTimes(_ROWS_OF_A_JOB * max_batch_size)
        self._scheduler: BatchScheduler[Shape] = BatchScheduler(
            max_batch_size, self._pace.limit, self._pace.measured_seconds, self._pace.seconds
        )
        self._stuck = Watchdog(stuck_seconds, clock)
        self._decoding = Decoding(decoder, self._stuck, clock)
        self._encoding = ImageEncoding(decoder, self._stuck)
        self._lag = LoopLag(time.monotonic)
        self._jobs: dict[str, RenderJob] = {}
        self._wake = asyncio.Event()
        self.isolation = Isolation(self._wake.set)
        self._runner: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._draining = False
        self._step_thread: ThreadPoolExecutor
        self._decode_thread: ThreadPoolExecutor
        self._passes = 0
        self._steps_done = 0
        self._halved = 0

    @property
    def pace(self) -> PassTimes:
        """What is known of how long passes take."""
        return self._pace

    async def start(self) -> None:
        """Start both threads and begin to take jobs; raises when a thread cannot be set up."""
        self._step_thread = torch_thread("denoise", self._torch_threads)
        self._decode_thread = torch_thread("decode", self._torch_threads)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._step_thread, torch.get_num_threads)  # a broken thread shows here
        self._watcher = asyncio.create_task(self._lag.watch(), name="loop-lag")
        self._runner = asyncio.create_task(self._run(), name="step-engine")

    async def measure(self, shapes: Iterable[Shape]) -> bool:
        """Measure passes of latents of these shapes that were not measured yet, with nothing else running.

        Tells whether there was such a shape. Raises what the model raises for a single row.
        """
        loop = asyncio.get_running_loop()
        unknown = [shape for shape in shapes if not self._pace.knows(shape)]
        for shape in unknown:
            rows = self._pace.max_rows
            taken = await loop.run_in_executor(self._step_thread, profiling.measure, self._denoiser, shape, rows)
            self._pace.measured(shape, taken)
            logger.info("passes of shape %s by rows: %s; limit %d", shape, taken, self._pace.limit(shape))
        return bool(unknown)

    async def stop(self) -> None:
        """Fail what is not denoised yet with Unavailable; wait for the pass in flight and the decodes under way."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        tasks = [task for task in (runner, self._watcher) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._step_thread.shutdown)
        await asyncio.to_thread(self._decode_thread.shutdown)

    async def drain(self, seconds: float) -> None:
        """Take no more jobs, finish what can be within `seconds`, hand the rest back at once; return when all ended.

        Handed back is Unavailable: another replica can begin it while this one still works.
        """
        self._draining = True
        self._hand_back(self._beyond(seconds * _DRAIN_SHARE))
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._jobs:  # noqa: ASYNC110 - many ends to wait for, and no hurry
                    await asyncio.sleep(0.05)
        self._hand_back(self._jobs.values())

    async def encode_image(self, pixels: Picture) -> Tensor:
        """Return the latents [channels, 1, h, w] of a video's first frame, uint8 RGB [height, width, 3].

        It is done beside the passes. Raises RenderFailed when the model takes no image or fails, Unavailable when the
        engine is not running.
        """
        self._check_open()
        with span("encode_image"):
            return await self._encoding.run(pixels, beside=self._decode_thread, between=self._step_thread)

    async def render(
        self,
        job_id: str,
        spec: VideoSpec,
        prompt_embeds: Tensor,
        negative_prompt_embeds: Tensor | None,
        on_step: OnStep,
        *,
        urgency: Urgency | None = None,
        asked_at: float | None = None,
        start: Start | None = None,
        checkpoints: Checkpoints = NO_CHECKPOINTS,
        first_frame: Tensor | None = None,
        on_begin: OnBegin | None = None,
    ) -> Rendering:
        """Denoise and decode one video; embeddings are [num_tokens, context_dim].

        asked_at: Unix seconds, when the job began to wait (absent: now); it is due from then on.

        With `start`, denoising goes on from there; from a checkpoint of the same request it ends in the same bits.
        first_frame: what `encode_image` made of the image that the spec names. on_begin: awaited before the first pass,
        which `isolation` may let wait.

        Raises RenderCancelled after `cancel`, RenderFailed when the model raises or diverges, Unavailable when the
        engine is not running or drains, Conflict when `job_id` is in the engine already, and ValueError for a start
        that does not fit, a guided spec (guidance_scale other than 1) without `negative_prompt_embeds`, and a first
        frame that the spec does not name, or the other way round.
        """
        if (first_frame is not None) != bool(spec.input_reference):
            raise ValueError("first_frame goes with a spec that has an input_reference")
        trajectory = Trajectory.of(
            self._denoiser, spec, prompt_embeds, negative_prompt_embeds, start=start, first_frame=first_frame
        )
        job = RenderJob(
            job_id,
            trajectory,
            on_step,
            queued_at=self._clock(),
            asked_at=min(self._wall(), self._wall() if asked_at is None else asked_at),
            size=(spec.width, spec.height),
            urgency=urgency or Urgency(),
            checkpoints=checkpoints,
            on_begin=on_begin,
            steps_given=trajectory.step,
        )
        self._admit(job)
        self._schedule(job)
        return await self._answered(job, self._see_through(job))

    async def decode(self, job_id: str, spec: VideoSpec, latents: Tensor) -> Rendering:
        """Decode stored latents, float16 [channels, frames, height, width]; raises like `render`."""
        empty = torch.empty((0, 0))
        trajectory = Trajectory.of(self._denoiser, spec, empty, empty)
        if tuple(latents.shape) != trajectory.shape:
            raise ValueError(f"latents of shape {tuple(latents.shape)}, not {trajectory.shape}")
        now = self._clock()
        job = RenderJob(
            job_id, trajectory, lambda step, total: None, queued_at=now, asked_at=self._wall(),
            size=(spec.width, spec.height), started_at=now, denoised_at=now, active=False,
        )  # fmt: skip
        self._admit(job)
        return await self._answered(job, self._decoded(job, latents))

    def cancel(self, job_id: str) -> bool:
        """Cancel a render: its slot is free at the next step; False when there is nothing to cancel."""
        job = self._jobs.get(job_id)
        if job is None or job.cancelled:
            return False
        job.cancelled = True
        self._drop(job, RenderCancelled("The render was cancelled."))
        return True

    def promote(self, job_id: str, urgency: Urgency) -> bool:
        """Make a job at least as urgent as `urgency`; False when it is not denoising here."""
        job = self._jobs.get(job_id)
        if job is None or not job.active:
            return False
        return self._scheduler.promote(job_id, self._wall(), urgency.priority, urgency.deadline)

    def stats(self) -> dict[str, Any]:
        """Jobs by phase, the backlog in steps and in seconds of this device, limits, and counters since the start."""
        jobs = self._jobs.values()
        backlog = self._scheduler.backlog
        return {
            "queued": sum(job.started_at is None for job in jobs),
            "running": sum(job.active and job.started_at is not None for job in jobs),
            "decoding": sum(job.denoised_at is not None for job in jobs),
            "backlog_steps": sum(job.steps_left for job in jobs if job.active),
            "backlog_seconds": sum(work.row_steps * self._pace.row_seconds(shape) for shape, work in backlog.items()),
            "steps_done": self._steps_done,
            "passes": self._passes,
            "halved": self._halved,
            "max_batch_size": self._scheduler.max_jobs,
            "draining": self._draining,
            **self._lag.stats(),
        }

    def check_health(self) -> None:
        """Raise Unavailable when the engine does not run or one of its threads is stuck."""
        if self._runner is None or self._runner.done():
            raise Unavailable("The step engine is not running.")
        self._stuck.check()

    def _check_open(self) -> None:
        if self._draining or self._runner is None or self._runner.done():
            raise Unavailable("The step engine is not running.", retry_after=1)

    def _admit(self, job: RenderJob) -> None:
        self._check_open()
        if job.job_id in self._jobs:
            raise Conflict(f"RenderJob {job.job_id} is being rendered already.")
        self._jobs[job.job_id] = job

    def _schedule(self, job: RenderJob) -> None:
        self._scheduler.add(
            job.job_id,
            job.trajectory.shape,
            job.steps_left,
            asked_at=job.asked_at,
            rows=job.rows,
            priority=job.urgency.priority,
            deadline=job.urgency.deadline,
        )
        self._wake.set()

    def _beyond(self, seconds: float) -> list[RenderJob]:
        """Return the jobs that would not be denoised within `seconds`, if those with the least to do went first."""
        late = []
        spent = 0.0
        for job in sorted((job for job in self._jobs.values() if job.active), key=lambda job: job.steps_left):
            work = job.steps_left * job.rows * self._pace.row_seconds(job.trajectory.shape)
            if spent + work > seconds:
                late.append(job)
            else:
                spent += work
        return late

    async def _answered(self, job: RenderJob, outcome: Awaitable[Decoded]) -> Rendering:
        result = "failed"
        try:
            frames, latents = await outcome
            result = "completed"
        except (RenderCancelled, asyncio.CancelledError):
            result = "cancelled"
            raise
        finally:
            self._forget(job)
            ended = job.rendered(result, self._clock())
            self._telemetry.emit(ended)
        return Rendering(frames, latents, ended.queue_seconds, ended.denoise_seconds, ended.decode_seconds, ended.steps)

    async def _see_through(self, job: RenderJob) -> Decoded:
        with span("queue_wait"):
            await job.started
        with span("denoise", steps=job.trajectory.sampler.num_inference_steps):
            latents = await job.denoised
        return await self._decoded(job, latents)

    async def _decoded(self, job: RenderJob, latents: Tensor) -> Decoded:
        with span("decode", num_frames=job.trajectory.shape[1]):
            if self._runner is None:
                raise Unavailable("The step engine stopped.", retry_after=1)
            return await self._decoding.run(job, latents, beside=self._decode_thread, between=self._step_thread)

    def _hand_back(self, jobs: Iterable[RenderJob]) -> None:
        for job in jobs:
            self._drop(job, Unavailable("This replica shuts down; another one takes the render.", retry_after=1))

    def _drop(self, job: RenderJob, error: EncoreError) -> None:
        if job.active:
            self._scheduler.remove(job.job_id)
        job.fail(error)

    def _forget(self, job: RenderJob) -> None:
        job.cancelled = True  # a decode that has not begun is not worth beginning
        if job.active:
            job.active = False
            self._scheduler.remove(job.job_id)
        del self._jobs[job.job_id]
        self.isolation.left(job.job_id)

    async def _run(self) -> None:
        try:
            while True:
                self._wake.clear()
                batch = await self._begun(self._chosen())
                if batch:
                    await self._pass(batch)
                else:
                    await self._wake.wait()
        finally:
            for job in self._jobs.values():
                self._drop(job, Unavailable("The step engine stopped.", retry_after=1))

    def _chosen(self) -> tuple[str, ...]:
        return self._scheduler.next_batch(self._wall(), None if self.isolation.is_open else self.isolation.may_run)

    async def _begun(self, job_ids: Iterable[str]) -> list[RenderJob]:
        """Return the jobs of a pass after those that had not begun were told so; without any that left meanwhile."""
        batch = [self._jobs[job_id] for job_id in job_ids]
        new = [job for job in batch if job.started_at is None]
        for job in new:
            self.isolation.begin(job.job_id)
        if hooks := [job.on_begin() for job in new if job.on_begin is not None]:
            await asyncio.gather(*hooks)
        return [job for job in batch if job.active]

    async def _pass(self, batch: list[RenderJob]) -> None:
        began = self._clock()
        for job in batch:
            job.begin(began)
        try:
            with self._stuck.running("denoise"):
                moved = await asyncio.get_running_loop().run_in_executor(
                    self._step_thread, advance, self._denoiser, [job.trajectory for job in batch]
                )
        except Exception as error:
            too_large = device_memory.is_out_of_memory(error)
            logger.log(logging.WARNING if too_large else logging.ERROR, "a pass failed", exc_info=not too_large)
        else:
            self._passes += 1
            self._telemetry.emit(StepRun(len(batch), self._clock() - began))
            self._pace.saw(batch[0].trajectory.shape, sum(job.rows for job in batch), self._clock() - began)
            self._move_all(batch, moved)
            return
        self._failed(batch, too_large)  # here, where the error no longer holds on to the pass's memory

    def _failed(self, batch: list[RenderJob], too_large: bool) -> None:
        if too_large:
            device_memory.give_back(self._denoiser.device)
        if too_large and len(batch) > 1:
            self._halved += 1
            self._pace.did_not_fit(batch[0].trajectory.shape, sum(job.rows for job in batch))
            return  # every job is where it was, and the next pass is smaller
        message = "There is too little memory for this video." if too_large else "The model failed while denoising."
        for job in batch:
            self._drop(job, RenderFailed(message))

    def _move_all(self, batch: list[RenderJob], moved: list[Trajectory]) -> None:
        for job, trajectory in zip(batch, moved, strict=True):
            # A job cancelled during the pass has left the scheduler, and its id may already name another one.
            if job.active:
                self._move(job, trajectory)

    def _move(self, job: RenderJob, trajectory: Trajectory) -> None:
        if not trajectory.is_finite:
            self._drop(job, RenderFailed("The model's output for this video is not finite."))
            return
        self._steps_done += 1
        is_last = self._scheduler.advance(job.job_id)
        job.move(trajectory)
        if trajectory.step in job.checkpoints.steps and not is_last:
            self._emit_checkpoint(job, trajectory)
        if is_last:
            job.finish(self._clock())

    def _emit_checkpoint(self, job: RenderJob, trajectory: Trajectory) -> None:
        """Copy the latents to the CPU in the decode thread: a copy waits for the device, and no step should."""
        copied = asyncio.get_running_loop().run_in_executor(self._decode_thread, trajectory.checkpoint)
        copied.add_done_callback(lambda done: _keep(job, done))


def _keep(job: RenderJob, copied: asyncio.Future[Start]) -> None:
    if copied.cancelled():
        return
    if error := copied.exception():
        logger.error("a checkpoint of job %s could not be copied", job.job_id, exc_info=error)
    else:
        job.keep(copied.result())
