"""The file of measurements: found by the same device and model, by no other, and never in the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deployments.measurements import Measurements
from serve_app.engine.pass_times import PassTimes

SHAPE = (8, 16, 8, 8)


def a_file(path: Path | None, **facts: Any) -> Measurements:
    usual: dict[str, Any] = {"model_fingerprint": "m", "device": "cpu", "torch_threads": 2}
    return Measurements(None if path is None else str(path), **usual | facts)


def measured() -> PassTimes:
    pace = PassTimes(8)
    pace.measured(SHAPE, {1: 1.0, 2: 1.1, 4: 1.9})
    return pace


def test_what_was_measured_is_found_again(tmp_path: Path) -> None:
    """By the same model on the same device with the same threads; another model or count of threads measures anew."""
    path = tmp_path / "folder" / "measurements.json"
    a_file(path).save(measured())
    a_file(path, model_fingerprint="other").save(PassTimes(8))
    for facts, found in (({}, True), ({"model_fingerprint": "new"}, False), ({"torch_threads": 1}, False)):
        pace = PassTimes(8)
        a_file(path, **facts).load(pace)
        assert pace.knows(SHAPE) is found


@pytest.mark.parametrize("content", ["{", "[]", '{"x": 1}', "\0"])
def test_a_damaged_file_costs_a_measurement(tmp_path: Path, content: str) -> None:
    """It is not read, nothing is raised, and the next save makes it whole."""
    path = tmp_path / "measurements.json"
    path.write_text(content)
    pace = PassTimes(8)
    a_file(path).load(pace)
    assert not pace.knows(SHAPE)
    a_file(path).save(measured())
    a_file(path).load(pace)
    assert pace.knows(SHAPE)


def test_nonsense_under_the_right_name_is_not_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Measurements that are none are logged and left."""
    path = tmp_path / "measurements.json"
    a_file(path).save(measured())
    path.write_text(path.read_text().replace("1.9", "-1.9"))
    pace = PassTimes(8)
    a_file(path).load(pace)
    assert not pace.knows(SHAPE)


def test_a_place_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    """Nor is no place at all."""
    (tmp_path / "file").write_text("")
    a_file(tmp_path / "file" / "below.json").save(measured())
    a_file(None).save(measured())
    a_file(None).load(PassTimes(8))
