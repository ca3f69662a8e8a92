"""A whole run: its folder, its checkpoint, and that it goes on, or refuses to, as it should."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from serve_app.errors import Conflict
from serve_app.model.native.autoencoder import FrameEncoder
from serve_app.model.native.native import from_folder
from serve_app.model.training.recipe import SHORT, SHORT_MODEL, Recipe
from serve_app.model.training.run import check_workers, train
from serve_app.model.training.stages.trainer import Progress
from tests.serve_app.model.training.short_run import ShortRun

QUICK = replace(
    SHORT,
    captions=20,
    autoencoder=replace(SHORT.autoencoder, steps=2),
    text_encoder=replace(SHORT.text_encoder, steps=2),
    clips={8: 8},
    denoiser=replace(SHORT.denoiser, steps=2),
)


def ignored(progress: Progress) -> None:
    return


def test_the_checkpoint_is_whole(short_run: ShortRun) -> None:
    """Weights of all four parts in half precision, the tokenizer, the sizes and the card; and it loads."""
    assert {path.name for path in short_run.checkpoint.iterdir()} == {
        "weights.safetensors",
        "tokenizer.json",
        "config.json",
        "README.md",
    }
    tensors = load_file(short_run.checkpoint / "weights.safetensors")
    assert {name.partition(".")[0] for name in tensors} == {"text_encoder", "denoiser", "decoder", "encoder"}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    family = from_folder(short_run.checkpoint)
    family.load_text_encoder("cpu")
    family.load_denoiser("cpu")
    family.load_decoder("cpu")


def test_the_checkpoint_holds_the_averaged_weights(short_run: ShortRun) -> None:
    """What is served is each stage's moving average, rounded to half precision."""
    tensors = load_file(short_run.checkpoint / "weights.safetensors")
    averaged = torch.load(short_run.folder / "denoiser.ckpt", weights_only=True)["average"]
    for name, tensor in averaged.items():
        assert torch.equal(tensors[f"denoiser.{name}"], tensor.half())


def test_the_encoder_loads_without_its_count_of_batches(short_run: ShortRun) -> None:
    """The encoder's statistics come back from the checkpoint, which has no room for BatchNorm's integer."""
    encoder = FrameEncoder(SHORT_MODEL.autoencoder)
    from_folder(short_run.checkpoint).weights.fill(encoder, "encoder")
    kept = load_file(short_run.folder / "autoencoder.safetensors")
    assert torch.equal(encoder.standardise.running_var, kept["encoder.standardise.running_var"].half().float())


def test_a_finished_run_is_not_repeated(short_run: ShortRun, tmp_path: Path) -> None:
    """Started again, it takes no step and writes the same weights."""
    folder = shutil.copytree(short_run.folder, tmp_path / "run")
    steps: list[Progress] = []
    out = train(SHORT_MODEL, SHORT, folder, report=steps.append)
    assert steps == []
    assert (out / "weights.safetensors").read_bytes() == (short_run.checkpoint / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("recipe", "workers", "told"),
    [
        (replace(SHORT, seed=2), 1, r"recipe\.seed = 1, not 2"),
        (SHORT, 2, "workers = 1, not 2"),
        (replace(SHORT, caption_dropout=0.5), 1, r"recipe\.caption_dropout"),
    ],
)
def test_another_run_is_refused(short_run: ShortRun, recipe: Recipe, workers: int, told: str) -> None:
    """A folder with another seed, recipe or number of workers is a Conflict that names the difference."""
    with pytest.raises(Conflict, match=told):
        train(SHORT_MODEL, recipe, short_run.folder, workers=workers, report=ignored)


def test_seeds_give_other_weights(short_run: ShortRun, tmp_path: Path) -> None:
    """Two seeds of one recipe end with different weights, and one seed twice with the same."""
    made = [
        (train(SHORT_MODEL, replace(QUICK, seed=seed), tmp_path / name, report=ignored) / "weights.safetensors")
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    one, again, other = (path.read_bytes() for path in made)
    assert one == again
    assert one != other


def test_workers_share_a_run_and_leave_with_it(tmp_path: Path) -> None:
    """Two workers take a run's first stages; when the first stops they all end, and the run can go on."""

    def stop(progress: Progress) -> None:
        if progress.stage == "denoiser":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(SHORT_MODEL, QUICK, tmp_path, workers=2, report=stop)
    assert multiprocessing.active_children() == []
    assert not torch.distributed.is_initialized()
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {
        "autoencoder.safetensors",
        "text_encoder.safetensors",
    }
    assert json.loads((tmp_path / "run.json").read_text())["workers"] == 2


@pytest.mark.parametrize(("workers", "device"), [(0, "cpu"), (SHORT.most_workers + 1, "cpu"), (2, "cuda")])
def test_impossible_workers_are_refused(workers: int, device: str) -> None:
    """None, more than the batches feed, or several on a GPU: ValueError before anything is written."""
    with pytest.raises(ValueError, match="workers"):
        check_workers(SHORT, workers, device)
    check_workers(SHORT, SHORT.most_workers, "cpu")
