"""Long work as it goes on: a bar for each part of it on a terminal, elsewhere a plain line now and then.

All of it goes to standard error. Figures of single steps jump, so what is shown is their mean over the last steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_REMEMBERED = 0.95  # of a figure's mean, a step: about the last twenty count
_LINES = 20
_PAUSE = 1.0  # seconds between two lines


class Bars:
    """Shows parts of a job by name; the worker calls `show` after every step."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._parts: dict[str, _Part] = {}

    def show(self, name: str, done: int, total: int, figures: Mapping[str, float] | None = None) -> None:
        """Tell that `done` of `total` steps of a part are done; the first call for a name starts its bar."""
        part = self._parts.get(name)
        if part is None:
            part = self._parts[name] = _Part(name, done, total, self._progress)
        part.show(done, figures or {})


@contextmanager
def bars() -> Iterator[Bars]:
    """Show bars while the block runs."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Bars(None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        yield Bars(progress)


class _Part:
    def __init__(self, name: str, done: int, total: int, progress: Progress | None) -> None:
        self._name = name
        self._total = total
        self._first, self._began = done, time.monotonic()
        self._means: dict[str, float] = {}
        self._twentieths, self._told = -1, -_PAUSE
        self._progress = progress
        self._bar = TaskID(0) if progress is None else progress.add_task(name, total=total, completed=done, figures="")

    def show(self, done: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            mean = self._means.get(name, value)
            self._means[name] = _REMEMBERED * mean + (1 - _REMEMBERED) * value
        shown = ", ".join(f"{name} {mean:.3f}" for name, mean in self._means.items())
        if self._progress is not None:
            self._progress.update(self._bar, completed=done, figures=shown)
        elif self._is_worth_a_line(done):
            typer.echo(f"{self._name}: {done} of {self._total}{shown and ', '}{shown}{self._left(done)}", err=True)

    def _is_worth_a_line(self, done: int) -> bool:
        twentieths, now = done * _LINES // self._total, time.monotonic()
        if twentieths == self._twentieths or (now < self._told + _PAUSE and done < self._total):
            return False
        self._twentieths, self._told = twentieths, now
        return True

    def _left(self, done: int) -> str:
        if done <= self._first or done == self._total:
            return ""
        seconds = (time.monotonic() - self._began) / (done - self._first) * (self._total - done)
        return f", {seconds / 60:.0f} min left" if seconds > 99 else f", {seconds:.0f} s left"
