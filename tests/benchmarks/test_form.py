"""The form of the benchmarks: goals, table, JSON, plot and exit status. No benchmark is run here."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from benchmarks.form import Goal, Result, main, report, shown, table

ROWS = [{"route": "bare", "p50 ms": 0.98765, "hits": 1234}, {"route": "GET content", "p50 ms": 12.0, "hits": 7}]


def result(*goals: Goal) -> Result:
    return Result(ROWS, goals, {"video, bytes": 285_890})


def draw(axes: Any, result: Result) -> None:
    axes.bar([row["route"] for row in result.rows], [row["p50 ms"] for row in result.rows])


@pytest.mark.parametrize(
    ("goal", "wanted", "met"),
    [
        (Goal.at_most("a", 1.2, 1.2), "<= 1.2", True),
        (Goal.at_most("a", 1.21, 1.2), "<= 1.2", False),
        (Goal.at_least("a", 0.85, 0.85), ">= 0.85", True),
        (Goal.at_least("a", 0.84, 0.85), ">= 0.85", False),
        (Goal.exactly("a", 0, 0), "== 0", True),
        (Goal.exactly("a", 1, 0), "== 0", False),
        (Goal.at_most("a", float("nan"), 1), "<= 1", False),
    ],
)
def test_a_goal_knows_whether_it_is_met(goal: Goal, wanted: str, met: bool) -> None:
    """Limits themselves are met, anything beyond is not, and a value that is no number never is."""
    assert (goal.goal, goal.met) == (wanted, met)


def test_the_exit_status_is_1_when_any_goal_is_unmet() -> None:
    """One unmet goal among met ones decides the exit status; without goals there is nothing to miss."""
    met, unmet = Goal.at_most("a", 1, 2), Goal.at_most("b", 3, 2)
    statuses = [main("", lambda quick, goals=goals: result(*goals), draw, []) for goals in ((met, unmet), (met,), ())]
    assert statuses == [1, 0, 0]


def test_quick_reaches_the_measurement() -> None:
    """`--quick` and its absence are what the program is told."""
    told: list[bool] = []

    def measure(quick: bool) -> Result:
        told.append(quick)
        return result()

    main("", measure, draw, ["--quick"])
    main("", measure, draw, [])
    assert told == [True, False]


def test_json_holds_figures_and_goals(tmp_path: Path) -> None:
    """The file has the rows unrounded, the facts, and each goal with name, value, goal and met."""
    path = tmp_path / "figures.json"
    main("", lambda quick: result(Goal.at_most("p50", 0.98765, 1.2)), draw, ["--json", str(path)])
    assert json.loads(path.read_text()) == {
        "figures": {"rows": ROWS, "facts": {"video, bytes": 285_890}},
        "goals": [{"name": "p50", "value": 0.98765, "goal": "<= 1.2", "met": True}],
    }


def test_plot_writes_a_picture_without_a_display(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program's own drawing ends in a PNG, though there is no screen."""
    monkeypatch.delenv("DISPLAY", raising=False)
    path = tmp_path / "figures.png"
    main("", lambda quick: result(), draw, ["--plot", str(path)])
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_table_is_aligned() -> None:
    """Text stands left, numbers right, each column as wide as its widest cell."""
    assert table(ROWS).splitlines() == [
        "route        p50 ms  hits",
        "bare          0.988  1234",
        "GET content      12     7",
    ]
    assert table([]) == ""


def test_the_report_names_unmet_goals() -> None:
    """Facts and goals follow the table, and a goal that is not met says so."""
    text = report(result(Goal.at_most("content p50 over bare", 1.5, 1.2)))
    assert "video, bytes: 285890" in text
    assert text.splitlines()[-1].split("  ")[0] == "content p50 over bare"
    assert text.endswith("NOT MET")


@pytest.mark.parametrize(
    ("value", "text"),
    [(float("nan"), "nan"), (0, "0"), (3.0, "3"), (0.98765, "0.988"), (123.4, "123"), (1234567, "1234567"), ("a", "a")],
)
def test_numbers_are_shown_with_three_digits(value: str | float, text: str) -> None:
    """Three significant digits, but no digit before the point is ever dropped."""
    assert shown(value) == text


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_program_cleans_up(kind: signal.Signals) -> None:
    """Ctrl-C and SIGTERM leave the measurement through its `finally`, and the exit status tells."""
    cleaned: list[bool] = []

    def measure(quick: bool) -> Result:
        try:
            os.kill(os.getpid(), kind)
            signal.sigtimedwait([], 5)  # the handler runs before or in here
            return result()
        finally:
            cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    assert main("", measure, draw, []) == 130
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped option ends the program before anything is started."""
    with pytest.raises(SystemExit) as ended:
        main("", lambda quick: pytest.fail("measured"), draw, ["--fast"])
    assert ended.value.code == 2
    assert "--fast" in capsys.readouterr().err
