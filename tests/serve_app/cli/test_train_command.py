"""`encore train`: a whole run through the command line, stopped and gone on with."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import Result

from serve_app.cli.train import default_workers
from serve_app.model.training.recipe import SHORT
from serve_app.model.training.record import usable_cores
from tests.serve_app.model.training.short_run import ShortRun

Encore = Callable[..., Result]
RUN = ("run", "--recipe", "short", "--workers", "1")


@pytest.fixture
def finished(short_run: ShortRun, place: Path) -> Path:
    """A finished run in the working folder."""
    return shutil.copytree(short_run.folder, place / "run")


def test_ctrl_c_saves_and_the_same_command_goes_on(
    start: Callable[..., subprocess.Popen[bytes]], encore: Encore, short_run: ShortRun, place: Path
) -> None:
    """A run stopped in its last stage ends with 130 and says how to go on; then its weights are a whole run's."""
    process = start("train", *RUN)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(b"denoiser: "):
            break
    process.send_signal(signal.SIGINT)
    out, told = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert b"encore: Stopped; the same command goes on with run." in told
    assert b"Traceback" not in told
    saved = torch.load(place / "run" / "denoiser.ckpt", weights_only=True)["step"]
    assert 0 < saved < SHORT.denoiser.steps

    result = encore("train", *RUN)
    assert (result.exit_code, result.stderr.count("autoencoder")) == (0, 0)
    assert f"denoiser: {saved + 1} of {SHORT.denoiser.steps}" in result.stderr
    weights = Path("checkpoint") / "weights.safetensors"
    assert (place / "run" / weights).read_bytes() == (short_run.folder / weights).read_bytes()


def test_the_end_says_what_to_do_next(encore: Encore, finished: Path) -> None:
    """The last lines name the checkpoint and the commands that judge and serve it."""
    result = encore("train", *RUN)
    assert result.exit_code == 0
    assert [line.split()[:2] for line in result.stdout.splitlines()] == [
        ["checkpoint", "run/checkpoint"],
        ["judge", "it"],
        ["serve", "it"],
    ]
    assert "encore evaluate run/checkpoint" in result.stdout
    assert f"encore serve --model {finished}/checkpoint" in result.stdout


@pytest.mark.parametrize("change", [("--seed", "9"), ("--workers", "2"), ("--recipe", "full")])
def test_another_run_in_the_folder_is_refused(encore: Encore, finished: Path, change: tuple[str, str]) -> None:
    """Another seed, number of workers or recipe is one line on standard error and status 1."""
    before = json.loads((finished / "run.json").read_text())
    result = encore("train", *RUN, *change)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("encore: run is a run with ")
    assert len(result.stderr.splitlines()) == 1
    assert json.loads((finished / "run.json").read_text()) == before


def test_too_many_workers_are_a_wrong_command_line(encore: Encore, place: Path) -> None:
    """More workers than the batches feed: status 2, and no folder is made."""
    result = encore("train", "run", "--recipe", "short", "--workers", "99")
    assert result.exit_code == 2
    assert f"1 to {SHORT.most_workers} workers" in result.stderr
    assert not (place / "run").exists()


def test_a_folder_that_cannot_be_made_is_one_line(encore: Encore, place: Path) -> None:
    """A file in the way is told, not raised."""
    (place / "file").touch()
    result = encore("train", "file/run", "--recipe", "short")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "encore: Cannot train in file/run: Not a directory.\n"


def test_a_missing_gpu_is_one_line(encore: Encore, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--device cuda` where there is none fails before anything is done."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = encore("train", "run", "--device", "cuda")
    assert (result.exit_code, result.stderr) == (1, "encore: There is no CUDA device here.\n")


def test_default_workers_fit_machine_and_recipe() -> None:
    """One per core, as many as the batches feed at most, and a single one on a GPU."""
    assert default_workers(SHORT, "cpu") == min(usable_cores(), SHORT.most_workers)
    assert default_workers(SHORT, "cuda") == 1
