"""`benchmarks/native_model.py --quick`, as a program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_quick_form_times_clips_and_their_floor(tmp_path: Path) -> None:
    """Clips alone and eight at a time cost the same FLOPs each, both sides are timed, and the goals decide."""
    path = tmp_path / "figures.json"
    command = [sys.executable, "benchmarks/native_model.py", "--quick", "--json", str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=12000
    )
    assert ended.stderr == ""
    found = json.loads(path.read_text())
    alone, together = found["figures"]["rows"]
    assert (alone["clips"], together["clips"], alone["steps"]) == (1, 8, 16)
    assert abs(alone["GFLOP a clip"] / together["GFLOP a clip"] - 1) < 0.05  # prompts differ in length
    assert all(row["s a clip"] > 0 and row["floor s a clip"] > 0 for row in (alone, together))
    assert [goal["goal"] for goal in found["goals"]] == ["<= 0.8", "<= 0.35"]
    assert ended.returncode == (0 if all(goal["met"] for goal in found["goals"]) else 1)
