"""How `encore evaluate` shows what it found: tables and goals on standard output, some videos as a picture.

A row of the picture is one video. Its first cell is the verdict, a stripe per attribute in the tables' order, green
where the prompt was followed; prompts are printed beside the row's number, because a PNG of frames holds no Chinese.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import typer
from rich.console import Console
from rich.table import Table as Grid

from serve_app.core import Frames
from serve_app.media import contact_sheet
from serve_app.model.training.judge.goals import MOST_STEPS, Goal
from serve_app.model.training.judge.judge import ALL, Score, Table
from serve_app.model.training.world import world

if TYPE_CHECKING:
    from serve_app.cli.evaluate import Round
    from serve_app.render.evaluation import RenderedQuestion

FRAMES_PER_ROW = 8
RIGHT, WRONG = (40, 170, 70), (210, 40, 40)
_WIDE = 130  # columns, where no terminal says how many there are


def print_evaluation(
    model: str,
    ceilings: Mapping[str, Table],
    rounds: Mapping[int, Round],
    goals: Sequence[Goal],
    goal_steps: int | None,
    by_size: Mapping[str, Round],
) -> None:
    """Print the ceilings, a table per number of steps, one over other sizes, and whether each goal is met."""
    console = Console(markup=False, width=None if sys.stdout.isatty() else _WIDE)
    console.print(_grid("The oracle's ceiling, % and 95% interval", ceilings))
    for steps, each in rounds.items():
        title = f"{model} at {steps} steps, % and 95% interval, {each.seconds_per_clip:.2f} s a clip"
        console.print(_grid(title, each.tables))
    if by_size:
        title = f"{model} at other sizes, {goal_steps or max(rounds)} steps, % and 95% interval"
        console.print(_grid(title, {size: each.tables[ALL] for size, each in by_size.items()}))
    at = f"ceilings only: the model's are for {MOST_STEPS} steps or fewer"
    console.print(f"Goals, {at if goal_steps is None else f'at {goal_steps} steps'}")
    for goal in goals:
        word = "met" if goal.met else "unmet"
        console.print(f"  {word:<6}{goal.name}: {goal.share:.1%}, wanted {goal.wanted:.0%}", highlight=False)


def sheet_of(answers: Sequence[RenderedQuestion]) -> bytes:
    """Return a PNG with a row per answer: its verdict, then eight of its frames; the answers have one size."""
    return contact_sheet(np.concatenate([_row(answer) for answer in answers]), columns=1 + FRAMES_PER_ROW)


def print_sheet(answers: Sequence[RenderedQuestion], *, quiet: bool = False) -> None:
    """Print what each row of the sheet was asked for and what is wrong; on standard error when `quiet`."""
    for row, answer in enumerate(answers, 1):
        asked, seen = answer.verdict.asked, answer.verdict.seen
        wrong = [name for name, met in answer.verdict.met.items() if not met]
        told = ", ".join(f"{name} {getattr(asked, name)}, seen {getattr(seen, name) or 'none'}" for name in wrong)
        typer.echo(f"row {row:>2}  {answer.question.prompt}  [{told or 'right'}]", err=quiet)


def _grid(title: str, columns: Mapping[str, Table]) -> Grid:
    grid = Grid("attribute", title=title, title_justify="left")
    for name in columns:
        grid.add_column(name, justify="right")
    for name in (*world.ATTRIBUTES, ALL):
        grid.add_row(
            "all five" if name == ALL else name, *(_cell(table.scores.get(name)) for table in columns.values())
        )
    return grid


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    low, high = score.interval
    return f"{100 * score.share:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _row(answer: RenderedQuestion) -> Frames:
    at = np.linspace(0, len(answer.frames) - 1, FRAMES_PER_ROW).round().astype(int)
    row: Frames = np.concatenate([_stripes(answer)[None], answer.frames[at]])
    return row


def _stripes(answer: RenderedQuestion) -> Frames:
    """Return a picture of a frame's size with a stripe per attribute."""
    picture: Frames = np.zeros_like(answer.frames[0])
    stripes = np.array_split(picture[3:-3, 3:-3], len(answer.verdict.met))
    for stripe, met in zip(stripes, answer.verdict.met.values(), strict=True):
        stripe[1:-1] = RIGHT if met else WRONG
    return picture
