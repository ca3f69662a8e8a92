"""The form of every benchmark: one command line, a table, JSON, a plot, and goals that decide the exit status.

    python benchmarks/X.py [--quick] [--json PATH] [--plot PATH]

A program asks its question in its own docstring, measures, and hands a Result to `main`. The exit status is 0 when
every goal is met, 1 when one is not, 130 after Ctrl-C or SIGTERM, which let the program's own clean-up run first.
"""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, str | int | float]
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Goal:
    """One thing that must hold: the measured `value`, the `goal` in words (`<= 1.2`), and whether it is met."""

    name: str
    value: float
    goal: str
    met: bool

    @classmethod
    def at_most(cls, name: str, value: float, limit: float) -> Goal:
        """Return the goal that `value` is no more than `limit`."""
        return cls(name, value, f"<= {limit:g}", value <= limit)

    @classmethod
    def at_least(cls, name: str, value: float, limit: float) -> Goal:
        """Return the goal that `value` is no less than `limit`."""
        return cls(name, value, f">= {limit:g}", value >= limit)

    @classmethod
    def exactly(cls, name: str, value: float, wanted: float) -> Goal:
        """Return the goal that `value` is `wanted`; for counts."""
        return cls(name, value, f"== {wanted:g}", value == wanted)


@dataclass(frozen=True, slots=True)
class Result:
    """What a benchmark found: `rows` of one table (the same columns in each), `facts` beside it, and the goals."""

    rows: Sequence[Row]
    goals: Sequence[Goal]
    facts: Row = field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether every goal is met."""
        return all(goal.met for goal in self.goals)

    def to_json(self) -> dict[str, Any]:
        """Return {figures: {rows, facts}, goals: [{name, value, goal, met}]}."""
        return {
            "figures": {"rows": list(self.rows), "facts": dict(self.facts)},
            "goals": [asdict(goal) for goal in self.goals],
        }


def main(
    question: str,
    measure: Callable[[bool], Result],
    draw: Callable[[Any, Result], None],
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a benchmark's command line and return its exit status.

    question: the program's docstring. measure: gets whether it shall be quick. draw: puts a Result on matplotlib Axes.
    """
    options = _options(question, arguments)
    # SIGINT too: a program started in the background of a script inherits it ignored.
    previous = {kind: signal.signal(kind, signal.default_int_handler) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        result = measure(options.quick)
    except KeyboardInterrupt:
        print("interrupted")
        return INTERRUPTED
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)
    print(report(result))
    if options.json is not None:
        options.json.write_text(json.dumps(result.to_json(), indent=2) + "\n")
    if options.plot is not None:
        _plot(options.plot, result, draw)
    return 0 if result.met else 1


def report(result: Result) -> str:
    """Return the result as text: the table, the facts, the goals."""
    facts = [f"{name}: {shown(value)}" for name, value in result.facts.items()]
    goals: list[Row] = [
        {"goal": goal.name, "value": goal.value, "wanted": goal.goal, "": "met" if goal.met else "NOT MET"}
        for goal in result.goals
    ]
    return "\n\n".join(filter(None, (table(result.rows), "\n".join(facts), table(goals))))


def table(rows: Sequence[Row]) -> str:
    """Return rows in aligned columns under the names of the first; text to the left, numbers to the right."""
    if not rows:
        return ""
    columns = list(rows[0])
    cells = [columns, *([shown(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    texts = [isinstance(rows[0][column], str) for column in columns]
    lines = [
        "  ".join(cell.ljust(width) if text else cell.rjust(width) for cell, width, text in zip(*line, strict=True))
        for line in ((line, widths, texts) for line in cells)
    ]
    return "\n".join(line.rstrip() for line in lines)


def shown(value: str | float) -> str:
    """Return `value` for people: whole numbers whole, others with three significant digits or all before the point."""
    if isinstance(value, str):
        return value
    if float(value).is_integer() or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def _options(question: str, arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=question, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, about a minute in all")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write figures and goals there")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="write a picture there (.png or .svg)")
    return parser.parse_args(arguments)


def _plot(path: Path, result: Result, draw: Callable[[Any, Result], None]) -> None:
    import matplotlib

    matplotlib.use("Agg")  # no display
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    draw(axes, result)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
