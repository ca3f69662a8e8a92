"""One render inside the engine: where it is, who waits for it, and its times. Touched on the event loop only."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from torch import Tensor

from serve_app.core import Urgency
from serve_app.engine.denoising import Start, Trajectory
from serve_app.errors import EncoreError
from serve_app.telemetry import Rendered

logger = logging.getLogger(__name__)

OnStep = Callable[[int, int], None]
"""Told (steps done, steps in all) after every step, on the event loop; what it raises is logged."""


OnBegin = Callable[[], Awaitable[None]]
"""Awaited before the first pass of a render, which waits for it; raises nothing."""


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """After which steps (1 for the first) the latents are handed to `keep`, on the event loop and in order."""

    steps: frozenset[int]
    keep: Callable[[Start], None]


NO_CHECKPOINTS = Checkpoints(frozenset(), lambda point: None)


@dataclass(slots=True, eq=False)
class RenderJob:
    """A render from admission until its waiter has been answered; `active` while it may take part in a pass.

    `started` is set at its first pass, `denoised` gets the final latents in half precision; a failure goes to
    whichever of the two is awaited.
    """

    job_id: str
    trajectory: Trajectory
    on_step: OnStep
    queued_at: float
    asked_at: float
    size: tuple[int, int]
    """Width and height of the frames that are asked for."""
    urgency: Urgency = field(default_factory=Urgency)
    checkpoints: Checkpoints = NO_CHECKPOINTS
    on_begin: OnBegin | None = None
    started: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    denoised: asyncio.Future[Tensor] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    steps_given: int = 0
    """Steps that a start point spared."""
    started_at: float | None = None
    denoised_at: float | None = None
    decode_seconds: float = 0.0
    active: bool = True
    cancelled: bool = False

    @property
    def rows(self) -> int:
        """How many rows of a pass the job takes."""
        return 1 if self.trajectory.negative_prompt_embeds is None else 2

    @property
    def steps_left(self) -> int:
        """How many steps are still to be done."""
        return self.trajectory.sampler.num_inference_steps - self.trajectory.step

    def begin(self, now: float) -> None:
        """Take part in a pass; the first one ends the wait in the queue."""
        if self.started_at is None:
            self.started_at = now
            if not self.started.done():
                self.started.set_result(None)

    def move(self, trajectory: Trajectory) -> None:
        """Take the result of a step and tell the listener."""
        self.trajectory = trajectory
        self._tell("progress", self.on_step, trajectory.step, trajectory.sampler.num_inference_steps)

    def keep(self, point: Start) -> None:
        """Hand a checkpoint to its listener."""
        self._tell("checkpoint", self.checkpoints.keep, point)

    def finish(self, now: float) -> None:
        """Hand the final latents to the waiter."""
        self.active = False
        self.denoised_at = now
        if not self.denoised.done():
            self.denoised.set_result(self.trajectory.final_latents())

    def fail(self, error: EncoreError) -> None:
        """Hand an error to the waiter, unless it has gone or has its latents."""
        self.active = False
        awaited = self.denoised if self.started.done() else self.started
        if not self.started.cancelled() and not awaited.done():
            awaited.set_exception(error)

    def rendered(self, result: str, now: float) -> Rendered:
        """Tell how the render ended (`completed`, `failed`, `cancelled`) and where its time went."""
        started_at = now if self.started_at is None else self.started_at
        denoised_at = now if self.denoised_at is None else self.denoised_at
        return Rendered(
            result=result,
            queue_seconds=started_at - self.queued_at,
            denoise_seconds=denoised_at - started_at,
            decode_seconds=self.decode_seconds,
            steps=self.trajectory.step - self.steps_given,
        )

    def _tell(self, what: str, listener: Callable[..., None], *news: object) -> None:
        try:
            listener(*news)
        except Exception:
            logger.exception("the %s listener of job %s failed", what, self.job_id)
