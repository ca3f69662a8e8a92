"""`run.json`: what may change between two starts of a run, and what it took."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.errors import Conflict
from serve_app.model.native.config import DEMO
from serve_app.model.training.recipe import SHORT, SHORT_MODEL
from serve_app.model.training.record import hardware, open_record, usable_cores


def begun(folder: Path) -> None:
    with open_record(folder, SHORT_MODEL, SHORT, 1, "cpu").timed():
        pass


def test_a_record_comes_back(tmp_path: Path) -> None:
    """A second start of the same run reads what the first wrote, hardware once."""
    begun(tmp_path)
    record = open_record(tmp_path, SHORT_MODEL, SHORT, 1, "cpu")
    assert record.hardware == [hardware("cpu")]
    assert record.seconds is not None
    assert json.loads((tmp_path / "run.json").read_text())["recipe"]["seed"] == SHORT.seed


def test_time_adds_up_also_when_a_run_is_stopped(tmp_path: Path) -> None:
    """Seconds of every start count, those of a start that raised too."""
    begun(tmp_path)
    record = open_record(tmp_path, SHORT_MODEL, SHORT, 1, "cpu")
    record.seconds = 100.0
    with pytest.raises(KeyboardInterrupt), record.timed():
        raise KeyboardInterrupt
    after = open_record(tmp_path, SHORT_MODEL, SHORT, 1, "cpu").seconds
    assert after is not None
    assert 100 <= after < 101


def test_lengths_may_change(tmp_path: Path) -> None:
    """A run may be lengthened: steps and the decay at their end are no other recipe."""
    begun(tmp_path)
    longer = replace(SHORT, denoiser=replace(SHORT.denoiser, steps=999, decay=100))
    assert open_record(tmp_path, SHORT_MODEL, longer, 1, "cpu").facts["recipe"]["denoiser"]["steps"] == 999
    with pytest.raises(Conflict, match="batch"):
        open_record(tmp_path, SHORT_MODEL, replace(SHORT, denoiser=replace(SHORT.denoiser, batch=16)), 1, "cpu")


def test_another_model_is_another_run(tmp_path: Path) -> None:
    """A folder of the short model is not gone on with as the demo."""
    begun(tmp_path)
    with pytest.raises(Conflict, match="config"):
        open_record(tmp_path, DEMO, SHORT, 1, "cpu")


def test_an_older_run_is_taken_over(tmp_path: Path) -> None:
    """Stages without a record are accepted, and nobody claims to know how long they took."""
    (tmp_path / "autoencoder.ckpt").touch()
    record = open_record(tmp_path, SHORT_MODEL, SHORT, 2, "cpu")
    with record.timed():
        pass
    assert open_record(tmp_path, SHORT_MODEL, SHORT, 2, "cpu").seconds is None


def test_cores_are_those_this_process_may_use() -> None:
    """At least one, and no more than the process is allowed to run on."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert 1 <= usable_cores() <= allowed
