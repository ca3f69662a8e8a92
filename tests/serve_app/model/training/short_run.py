"""One whole short training run, shared by all tests that need trained weights."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from serve_app.model.training.recipe import SHORT, SHORT_MODEL
from serve_app.model.training.run import train
from serve_app.model.training.stages.trainer import Progress


@dataclass(frozen=True)
class ShortRun:
    folder: Path
    checkpoint: Path
    losses: dict[str, list[float]]
    """Every step's loss, by stage."""


def short_run(folder: Path) -> ShortRun:
    losses: dict[str, list[float]] = defaultdict(list)

    def report(step: Progress) -> None:
        if "loss" in step.figures:
            losses[step.stage].append(step.figures["loss"])

    return ShortRun(folder, train(SHORT_MODEL, SHORT, folder, report=report), losses)
