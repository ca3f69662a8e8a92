"""The model card: its numbers are the run's own, and an evaluation fills in its section."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from serve_app.model.training.judge.judge import Score, Table
from serve_app.model.training.model_card import BEGIN, END, model_card, sizes, with_accuracy
from serve_app.model.training.recipe import SHORT, SHORT_MODEL
from serve_app.model.training.record import Record
from serve_app.model.training.world.world import ATTRIBUTES
from tests.serve_app.model.training.short_run import ShortRun

SIZES = {"text_encoder": (1000, 2000), "denoiser": (1234567, 2469134), "decoder": (3, 6), "encoder": (4, 8)}
RECORD = Record(Path("run.json"), {"workers": 2}, ["A Processor, 2 cores"], 4321.0)


def table(share: int) -> dict[str, Any]:
    return Table({name: Score(share, 100) for name in (*ATTRIBUTES, "all")}).as_dict()


FIGURES: dict[str, Any] = {
    "count": 100,
    "seed": 0,
    "guidance_scale": 3.0,
    "ceiling": {"rendered": table(99), "reconstructed": table(97)},
    "steps": {
        "8": {"tables": {"all": table(71), "English": table(72)}},
        "16": {"tables": {"all": table(81), "English": table(82), "Chinese": table(83)}},
    },
    "goal_steps": 16,
    "goals": [{"name": "shape", "wanted": 0.9, "share": 0.81, "met": False}],
}


def test_the_front_matter_is_hugging_faces() -> None:
    """The card begins with YAML that names licence, languages and task."""
    front = yaml.safe_load(model_card(SHORT_MODEL, SHORT, RECORD, SIZES).split("---")[1])
    assert front["license"] == "apache-2.0"
    assert front["language"] == ["en", "zh"]
    assert front["pipeline_tag"] == "text-to-video"


def test_numbers_are_those_of_this_run() -> None:
    """Another recipe gives another card: steps, batches, seed, clips; the record tells hardware and time."""
    recipe = replace(SHORT, seed=77, clips={16: 4321}, denoiser=replace(SHORT.denoiser, steps=8765, batch=52))
    card = model_card(SHORT_MODEL, recipe, RECORD, SIZES)
    for words in ("Seed 77;", "4,321 of 16 frames", "| denoiser | 8,765 | 52 clips | 0.003 |", "1,234,567", "2.47 MB"):
        assert words in card
    assert "A Processor, 2 cores; 2 workers. Time: 4,321 s." in card
    assert "Time: not recorded." in model_card(SHORT_MODEL, recipe, replace(RECORD, seconds=None), SIZES)


def test_the_world_is_described() -> None:
    """Every value of every attribute, the split and the limits are told."""
    card = model_card(SHORT_MODEL, SHORT, RECORD, SIZES)
    for name, values in ATTRIBUTES.items():
        assert f"- {name}: {', '.join(values)}" in card
    assert "5,184 combinations 457 are held out" in card
    assert "64x64" in card.partition("## Limits")[2]


def test_sizes_are_counted_in_the_file(short_run: ShortRun) -> None:
    """Each part's values and bytes add up to the file's tensors."""
    path = short_run.checkpoint / "weights.safetensors"
    found = sizes(path)
    tensors = load_file(path)
    assert found.keys() == SIZES.keys()
    assert sum(count for count, _ in found.values()) == sum(tensor.numel() for tensor in tensors.values())
    assert all(size == 2 * count for count, size in found.values())


def test_a_run_writes_its_card(short_run: ShortRun) -> None:
    """The checkpoint's README is the card of its own recipe, not measured yet."""
    card = (short_run.checkpoint / "README.md").read_text()
    assert f"| autoencoder | {SHORT.autoencoder.steps} |" in card
    assert "Not measured yet" in card


def test_an_evaluation_fills_its_section_in_and_nothing_else() -> None:
    """Tables, ceilings and goals stand between the markers; a second evaluation replaces the first."""
    card = model_card(SHORT_MODEL, SHORT, RECORD, SIZES)
    filled = with_accuracy(card, FIGURES)
    assert with_accuracy(filled, FIGURES) == filled
    assert filled.partition(BEGIN)[0] == card.partition(BEGIN)[0]
    assert filled.partition(END)[2] == card.partition(END)[2]
    section = filled.partition(BEGIN)[2].partition(END)[0]
    assert "|  | 8 steps | 16 steps |" in section
    assert "| shape | 71.0% (61.5% to 79.0%) | 81.0%" in section
    assert "|  | English | Chinese | ceiling: rendered | ceiling: reconstructed |" in section
    assert "not met: shape 81.0%, wanted 90%" in section


def test_a_card_without_the_section_is_refused() -> None:
    """Somebody else's README is not overwritten."""
    with pytest.raises(ValueError, match="section"):
        with_accuracy("# My model", FIGURES)
