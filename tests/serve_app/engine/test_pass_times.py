"""What is known of passes: limits from measurements, estimates between and beyond them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.pass_times import GAIN, PassTimes, best_rows, between
from serve_app.errors import InvalidRequest

SMALL, LARGE = (8, 16, 8, 8), (8, 16, 16, 16)


def test_rows_pay_while_throughput_rises() -> None:
    """A device that is full with one row gets one; one that is hardly busy gets all; in between the knee."""
    assert best_rows({1: 1.0, 2: 2.0, 4: 4.0}) == 1
    assert best_rows({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}) == 8
    assert best_rows({1: 1.0, 2: 1.2, 4: 2.0, 8: 4.0}) == 4


def test_one_bad_measurement_does_not_end_the_search() -> None:
    """Two rows were disturbed; that four are quicker than twice two ones is still seen."""
    assert best_rows({1: 1.0, 2: 2.2, 4: 2.0}) == 4


@given(st.dictionaries(st.sampled_from([1, 2, 4, 8, 16]), st.floats(0.01, 10), min_size=1))
def test_the_best_rows_are_measured_ones_and_never_slower(seconds: dict[int, float]) -> None:
    """The choice is among the measured, and gives at least the throughput of the fewest rows."""
    best, fewest = best_rows(seconds), min(seconds)
    assert best in seconds
    assert best / seconds[best] >= fewest / seconds[fewest]
    assert GAIN > 0


def test_a_limit_is_measured_bounded_and_scaled() -> None:
    """The measured shape has its own, a shape four times as large a quarter, never below 1 or above the most."""
    pace = PassTimes(16)
    assert pace.limit(SMALL) == 16
    pace.measured(SMALL, {1: 1.0, 2: 1.1, 4: 1.2, 8: 1.6})
    assert (pace.limit(SMALL), pace.limit(LARGE), pace.limit((8, 16, 64, 64))) == (8, 2, 1)
    assert pace.limit((8, 1, 1, 1)) == 16
    assert pace.knows(SMALL)
    assert not pace.knows(LARGE)


def test_what_did_not_fit_halves_the_limit_of_all_that_is_as_large() -> None:
    """After too little memory for 8 rows at most 4 are run, of larger shapes too; smaller ones are not touched."""
    pace = PassTimes(16)
    pace.did_not_fit(LARGE, 8)
    assert (pace.limit(LARGE), pace.limit((8, 24, 16, 16)), pace.limit(SMALL)) == (4, 4, 16)
    pace.did_not_fit(LARGE, 1)
    assert pace.limit(LARGE) == 1


def test_seconds_are_interpolated_and_scaled() -> None:
    """Between two sizes in a line, beyond the last in proportion, for another shape by volume, 0 when unknown."""
    pace = PassTimes(16)
    assert pace.seconds(SMALL, 2) == 0
    pace.measured(SMALL, {1: 1.0, 4: 2.5})
    assert [pace.seconds(SMALL, rows) for rows in (1, 2, 4, 8)] == [1.0, 1.5, 2.5, 5.0]
    assert pace.seconds(LARGE, 4) == 10.0
    assert pace.row_seconds(SMALL) == pytest.approx(2.5 / 4)


def test_passes_that_ran_correct_the_estimates() -> None:
    """Slower passes than measured raise the estimate slowly; the limit stays what was measured."""
    pace = PassTimes(16)
    pace.measured(SMALL, {1: 1.0, 2: 1.2})
    for _ in range(50):
        pace.saw(SMALL, 2, 2.0)
    assert pace.seconds(SMALL, 2) == pytest.approx(2.0, rel=0.01)
    assert pace.limit(SMALL) == 2
    fresh = PassTimes(16)
    fresh.saw(SMALL, 3, 6.0)
    assert fresh.seconds(SMALL, 3) == 6.0
    assert fresh.limit(SMALL) == 16


@given(st.dictionaries(st.integers(1, 32), st.floats(0.001, 10), min_size=1), st.integers(1, 64))
def test_an_estimate_lies_between_its_neighbours(seconds: dict[int, float], rows: int) -> None:
    """Within the measured range an estimate never leaves the range of the two it lies between."""
    estimate = between(seconds, rows)
    assert estimate > 0
    if min(seconds) <= rows <= max(seconds):
        around = [seconds[max(n for n in seconds if n <= rows)], seconds[min(n for n in seconds if n >= rows)]]
        assert min(around) * 0.999 <= estimate <= max(around) * 1.001


def test_measurements_survive_a_file_and_nonsense_is_refused() -> None:
    """Through JSON and back limits and estimates are the same; what is no measurement is an InvalidRequest."""
    pace, again = PassTimes(16), PassTimes(16)
    pace.measured(SMALL, {1: 1.0, 2: 1.1, 4: 1.2})
    again.load(json.loads(json.dumps(pace.to_json())))
    assert (again.limit(SMALL), again.seconds(SMALL, 2)) == (pace.limit(SMALL), pace.seconds(SMALL, 2))
    for nonsense in ([{"shape": [1]}], [{"shape": [1], "seconds": {}}], ["x"], [{"shape": [1], "seconds": {"0": 1}}]):
        with pytest.raises(InvalidRequest):
            PassTimes(16).load(nonsense)  # type: ignore[arg-type]
