"""`encore evaluate`: tables, goals, figures, a contact sheet and the card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

from serve_app.cli import evaluate
from serve_app.cli.output import evaluate_tables
from serve_app.model.native.native import from_folder
from serve_app.model.training.judge import judge
from serve_app.model.training.judge.judge import Verdict
from serve_app.model.training.judge.questions import questions
from tests.serve_app.model.training.short_run import ShortRun

Encore = Callable[..., Result]
FEW = ("--count", "8", "--steps", "2,4")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def checkpoint(short_run: ShortRun, place: Path) -> Path:
    """A checkpoint of the test's own."""
    return shutil.copytree(short_run.checkpoint, place / "model")


def test_an_untrained_model_misses_its_goals(encore: Encore, checkpoint: Path) -> None:
    """People get a ceiling, a table per number of steps, and each goal as met or unmet; the status is 1."""
    result = encore("evaluate", "model", *FEW)
    assert result.exit_code == 1
    for words in ("The oracle's ceiling", "reconstructed", "native/model at 2 steps", "native/model at 4 steps"):
        assert words in result.stdout
    for words in ("English", "Chinese", "known templates", "held-out templates", "Goals, at 4 steps"):
        assert words in result.stdout
    assert "met   ceiling, rendered: 100.0%, wanted 99%" in result.stdout
    assert "unmet all five: " in result.stdout
    assert "4 steps: 32 of 32" in result.stderr


def test_a_perfect_model_meets_them(encore: Encore, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When every verdict is right, all lines say `met` and the status is 0."""
    right = lambda asked, frames: Verdict(asked, asked)  # noqa: E731 - replaces a function of two names
    monkeypatch.setattr("serve_app.render.evaluation.judge", right)
    monkeypatch.setattr(judge, "judge", right)
    result = encore("evaluate", "model", *FEW)
    assert result.exit_code == 0
    assert result.stdout.count("  met ") == 8
    assert "unmet" not in result.stdout


def test_figures_for_programs(encore: Encore, checkpoint: Path) -> None:
    """`--json -` prints one object and nothing else; its tables count every group, and goals are at the most steps."""
    result = encore("evaluate", "model", *FEW, "--json", "-", "--guidance", "2")
    found: dict[str, Any] = json.loads(result.stdout)
    assert (found["model"], found["count"], found["guidance_scale"], found["goal_steps"]) == ("native/model", 8, 2.0, 4)
    assert found["weights"] == from_folder(checkpoint).weights.identity
    assert found["steps"].keys() == {"2", "4"}
    tables = found["steps"]["4"]["tables"]
    assert {name: table["all"]["n"] for name, table in tables.items()} == {
        "all": 8,
        "English": 4,
        "Chinese": 4,
        "known templates": 4,
        "held-out templates": 4,
    }
    for name, score in tables["all"].items():
        assert score["correct"] == tables["English"][name]["correct"] + tables["Chinese"][name]["correct"]
    assert found["ceiling"]["rendered"]["all"]["n"] == 8
    assert [goal["name"] for goal in found["goals"] if not goal["met"]]


def test_files_are_written(encore: Encore, checkpoint: Path, place: Path) -> None:
    """The figures, a PNG of some videos with a line of text for each, and the card's section."""
    places = ("--json", "figures.json", "--sheet", "sheet.png", "--card")
    result = encore("evaluate", "model", *FEW, *places)
    figures = json.loads((place / "figures.json").read_text())
    assert (place / "sheet.png").read_bytes().startswith(b"\x89PNG")
    for row, question in enumerate(questions(8), 1):
        assert f"row {row:>2}  {question.prompt}  [" in result.stdout
    card = (checkpoint / "README.md").read_text()
    share = figures["steps"]["4"]["tables"]["all"]["background"]["share"]
    assert "8 prompts (seed 0)" in card
    assert f"{share:.1%}" in card
    assert "Not measured yet" not in card


def test_a_sheet_shows_verdicts_and_frames(encore: Encore, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row begins with a stripe per attribute, red where it is wrong, and goes on with eight frames in order."""
    kept: list[Any] = []
    monkeypatch.setattr(evaluate, "sheet_of", lambda answers: kept.extend(answers) or b"")
    encore("evaluate", "model", *FEW, "--sheet", "sheet.png")
    row = evaluate_tables._row(kept[0])
    assert row.shape == (9, 64, 64, 3)
    met = list(kept[0].verdict.met.values())
    colours = [tuple(row[0, 3 + int((i + 0.5) * 58 / len(met)), 32]) for i in range(len(met))]
    assert colours == [evaluate_tables.RIGHT if each else evaluate_tables.WRONG for each in met]
    assert (row[1] == kept[0].frames[0]).all()
    assert (row[-1] == kept[0].frames[-1]).all()


def test_without_few_enough_steps_there_are_ceilings_only(encore: Encore, checkpoint: Path) -> None:
    """The model's goals are for 16 steps or fewer; nothing else is judged by them."""
    found = json.loads(encore("evaluate", "model", "--count", "2", "--steps", "17", "--json", "-").stdout)
    assert found["goal_steps"] is None
    assert [goal["name"] for goal in found["goals"]] == ["ceiling, rendered", "ceiling, reconstructed"]


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("model", "--steps", "many"), 2, "'many' is not like 4,8,16."),
        (("model", "--steps", "0,4"), 2, "1 to 50 steps"),
        (("model", "--guidance", "99"), 2, "1 to 15, not 99"),
        (("nowhere",), 2, "does not exist"),
        (("empty",), 1, "is not a checkpoint"),
        (("bare", "--card"), 1, "is no model card"),
        (("model", "--sheet", "nowhere/a.png"), 1, "Cannot write"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    encore: Encore, checkpoint: Path, place: Path, arguments: tuple[str, ...], status: int, told: str
) -> None:
    """Wrong numbers, missing checkpoints and places that cannot be written are told before anything is rendered."""
    (place / "empty").mkdir()
    shutil.copytree(checkpoint, place / "bare")
    (place / "bare" / "README.md").write_text("# Mine")
    result = encore("evaluate", *arguments)
    assert (result.exit_code, result.stdout) == (status, "")
    assert told in " ".join(result.stderr.replace("│", " ").split())
    assert "clips: " not in result.stderr
