"""One training stage from its first step to its last: seeded, averaged, checkpointed, resumable to the bit.

A stage's batches are drawn from (seed, stage, step, rank) and from nothing else, so a run that was stopped anywhere
and goes on from its checkpoint takes exactly the steps of a run that never stopped. Several workers each take a part
of every batch and average their gradients over gloo: on CPUs one process of one thread per core is far quicker than
threads that wait for each other. The learning rate holds and then falls linearly over the last steps, so that a run
may be lengthened or cut short by changing `steps` alone.
"""

from __future__ import annotations

import copy
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from serve_app.errors import Unavailable
from serve_app.model.training.recipe import Schedule
from serve_app.model.training.stages.optimiser import Optimisers

CHECKPOINT_SECONDS = 30.0


class Stage(Protocol):
    """What a stage is to the trainer."""

    name: str

    @property
    def module(self) -> nn.Module:
        """Everything the optimiser changes."""
        ...

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, Mapping[str, float]]:
        """Return this worker's loss for a step and figures to show; all randomness comes from `rng`."""
        ...


@dataclass(frozen=True, slots=True)
class Worker:
    """One of `count` processes that share a run."""

    rank: int = 0
    count: int = 1

    def meet(self) -> None:
        """Wait until every worker is here."""
        if self.count > 1:
            dist.barrier()

    def average(self, module: nn.Module) -> None:
        """Replace every gradient by its mean over the workers."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        try:
            dist.all_reduce(flat)
        except RuntimeError as error:  # gloo's word for a closed connection
            raise Unavailable("Another worker of this run ended; started again, it goes on from its save.") from error
        for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient) / self.count)


@dataclass(frozen=True, slots=True)
class Progress:
    """A step that was taken."""

    stage: str
    step: int
    steps: int
    figures: Mapping[str, float]


class Trainer:
    """Takes a stage's steps; `average` holds the moving average of its weights, which is what is kept in the end."""

    def __init__(self, stage: Stage, schedule: Schedule, *, seed: int, folder: Path, worker: Worker) -> None:
        self._stage = stage
        self._schedule = schedule
        self._seed = seed
        self._worker = worker
        self._checkpoint = folder / f"{stage.name}.ckpt"
        self._optimisers = Optimisers(stage.module, schedule)
        self.average = copy.deepcopy(stage.module).requires_grad_(False)
        self.step = 0

    def run(self, progress: Callable[[Progress], None] = lambda _: None) -> nn.Module:
        """Go on from the checkpoint, if there is one, to the last step; returns the averaged module in eval mode.

        Ctrl-C or SIGTERM, in the first worker, ends the step, saves and raises KeyboardInterrupt.
        """
        self.resume()
        if self._worker.rank:
            for _ in self._steps():
                pass
        else:
            with _stop_postponed() as stop_asked:
                self._lead(progress, stop_asked)
        return self.average.eval()

    def _lead(self, progress: Callable[[Progress], None], stop_asked: threading.Event) -> None:
        saved = time.monotonic()
        for figures in self._steps():
            progress(Progress(self._stage.name, self.step, self._schedule.steps, figures))
            if stop_asked.is_set() or time.monotonic() - saved > CHECKPOINT_SECONDS:
                self.save()
                saved = time.monotonic()
            if stop_asked.is_set():
                raise KeyboardInterrupt
        self.save()

    def _steps(self) -> Iterator[Mapping[str, float]]:
        self._stage.module.train()
        while self.step < self._schedule.steps:
            yield self.take_step()

    def take_step(self) -> Mapping[str, float]:
        """Take one step; returns its figures."""
        name = int.from_bytes(self._stage.name.encode()[:7])
        rng = np.random.default_rng([self._seed, name, self.step, self._worker.rank])
        loss, figures = self._stage.loss(self.step, rng)
        self._optimisers.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch's own signature
        self._worker.average(self._stage.module)
        nn.utils.clip_grad_norm_(self._stage.module.parameters(), 1.0)
        self._optimisers.step(self._schedule.rate(self.step))
        self.step += 1
        self._follow()
        return {"loss": loss.item(), **figures}

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average: quickly at first, over the last 1 / (1 - decay) steps later."""
        decay = min(self._schedule.ema_decay, (1 + self.step) / (10 + self.step))
        pairs = zip(self.average.parameters(), self._stage.module.parameters(), strict=True)
        for averaged, current in pairs:
            averaged.lerp_(current, 1 - decay)
        for kept, buffer in zip(self.average.buffers(), self._stage.module.buffers(), strict=True):
            kept.copy_(buffer)

    def save(self) -> None:
        """Write the checkpoint; a reader sees the old one or the new one, never half of one."""
        whole = {
            "step": self.step,
            "module": self._stage.module.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": self._optimisers.state_dict(),
        }
        partial = self._checkpoint.with_suffix(".partial")
        torch.save(whole, partial)
        partial.replace(self._checkpoint)

    def resume(self) -> None:
        """Read the checkpoint, if there is one."""
        if not self._checkpoint.exists():
            return
        whole: dict[str, Any] = torch.load(self._checkpoint, weights_only=True, map_location="cpu")
        self._stage.module.load_state_dict(whole["module"])
        self.average.load_state_dict(whole["average"])
        self._optimisers.load_state_dict(whole["optimisers"])
        self.step = whole["step"]


@contextmanager
def _stop_postponed() -> Iterator[threading.Event]:
    """Yield an event that a first Ctrl-C or SIGTERM sets, so that no step is cut in half; a second one interrupts.

    A signal that is ignored, or has another handler, stays so; only the main thread may listen.
    """
    asked = threading.Event()

    def ask(signum: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    ours = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    main = threading.current_thread() is threading.main_thread()
    before = {number: usual for number, usual in ours.items() if main and signal.getsignal(number) == usual}
    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)
