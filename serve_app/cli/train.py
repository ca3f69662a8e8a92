"""`encore train`: a whole training run in one folder, which the same command goes on with after any stop.

The work is `serve_app.model.training.run`; here are its bars, the defaults that depend on the machine, and what to do
with the result.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from serve_app.cli.output.progress import Bars, bars
from serve_app.errors import InvalidRequest
from serve_app.model.native.config import NativeConfig
from serve_app.model.native.native import WEIGHTS_FILE
from serve_app.model.training.recipe import RECIPES, Recipe
from serve_app.model.training.record import usable_cores

if TYPE_CHECKING:
    from serve_app.model.training.stages.trainer import Progress


def train_model(
    out: Path, *, recipe: str, workers: int | None, device: str, seed: int | None, clip: Path | None
) -> None:
    """Train in the folder `out` and tell where the checkpoint is.

    Raises Conflict when another run lies there, InvalidRequest when `out` or the device cannot be used, BadParameter
    for a number of workers that cannot share the run, and KeyboardInterrupt, saved, for Ctrl-C.
    """
    config, numbers = RECIPES[recipe]
    numbers = numbers if seed is None else replace(numbers, seed=seed)
    count = default_workers(numbers, device) if workers is None else workers
    _check(numbers, count, device)
    try:
        folder = _run(config, numbers, out, count, device, clip)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Stopped; the same command goes on with {out}.") from None
    except OSError as error:
        raise InvalidRequest(f"Cannot train in {out}: {error.strerror or error}.", param="out") from error
    size = (folder / WEIGHTS_FILE).stat().st_size
    typer.echo(f"checkpoint  {folder} ({size / 1e6:.1f} MB)")
    typer.echo(f"judge it    encore evaluate {folder}")
    typer.echo(f"serve it    encore serve --model {folder.absolute()}")


def default_workers(recipe: Recipe, device: str) -> int:
    """Return one worker per core on CPUs, as far as the batches go round, and one on anything else."""
    return min(usable_cores(), recipe.most_workers) if device == "cpu" else 1


def _check(recipe: Recipe, workers: int, device: str) -> None:
    import torch

    from serve_app.model.training.run import check_workers

    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidRequest("There is no CUDA device here.", param="device")
    try:
        check_workers(recipe, workers, device)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--workers") from None


def _run(config: NativeConfig, recipe: Recipe, out: Path, workers: int, device: str, clip: Path | None) -> Path:
    from serve_app.model.training.run import train

    with bars() as shown:
        return train(
            config, recipe, out, workers=workers, device=device, clip=clip, report=lambda step: _show(shown, step)
        )


def _show(shown: Bars, progress: Progress) -> None:
    shown.show(progress.stage.replace("_", " "), progress.step, progress.steps, progress.figures)
