"""`benchmarks/factorised_conv.py --quick`, as a program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_quick_form_measures_and_judges(tmp_path: Path) -> None:
    """It times both convolutions, counts their FLOPs, and its exit status is what its goals say."""
    path = tmp_path / "figures.json"
    command = [sys.executable, "benchmarks/factorised_conv.py", "--quick", "--json", str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=1200
    )
    assert ended.stderr == ""
    found = json.loads(path.read_text())
    rows, (goal,) = found["figures"]["rows"], found["goals"]
    assert len(rows) == 3
    for row in rows:
        assert 0 < row["quartile 1"] <= row["ratio"] <= row["quartile 3"]
        assert row["factorised ms"] > 0
    assert goal["value"] == sorted(row["ratio"] for row in rows)[1]
    assert (goal["goal"], goal["met"]) == (">= 3", goal["value"] >= 3)
    assert ended.returncode == (0 if goal["met"] else 1)
    assert found["figures"]["facts"]["FLOPs, full over factorised"] == pytest.approx(2.25)
