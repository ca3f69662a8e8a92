"""Progress of long work, where nobody has a terminal."""

from __future__ import annotations

import pytest

from serve_app.cli.output import progress as module
from serve_app.cli.output.progress import bars


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.0)


def test_lines_come_every_twentieth_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A thousand steps are about twenty lines, the last of them complete; standard output stays empty."""
    with bars() as shown:
        for step in range(1, 1001):
            shown.show("denoiser", step, 1000, {"loss": 0.5})
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert printed.out == ""
    assert len(lines) == 21
    assert lines[0] == "denoiser: 1 of 1000, loss 0.500"
    assert lines[-1] == "denoiser: 1000 of 1000, loss 0.500"
    assert "left" in lines[10]


def test_lines_keep_a_distance(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Quick work prints its first and its last line only."""
    monkeypatch.setattr(module, "_PAUSE", 60.0)
    with bars() as shown:
        for step in range(1, 101):
            shown.show("clips", step, 100)
    assert capsys.readouterr().err.splitlines() == ["clips: 1 of 100", "clips: 100 of 100"]


def test_figures_are_smoothed_and_parts_kept_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """A single bad step barely shows, and another part starts its own mean."""
    with bars() as shown:
        shown.show("a", 1, 2, {"loss": 1.0})
        shown.show("a", 2, 2, {"loss": 3.0})
        shown.show("b", 1, 1, {"loss": 7.0})
    assert [line.rpartition(" ")[2] for line in capsys.readouterr().err.splitlines()] == ["1.000", "1.100", "7.000"]
