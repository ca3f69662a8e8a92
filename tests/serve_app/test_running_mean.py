"""The mean over the latest values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.running_mean import RunningMean


def test_the_newest_counts_for_its_share() -> None:
    """The first value is the mean; a later one moves it by its share of the difference."""
    mean = RunningMean(0.25)
    assert mean.value is None
    mean.add(8.0)
    assert mean.value == 8.0
    mean.add(4.0)
    assert mean.value == 7.0


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1.0))
def test_it_stays_within_what_was_seen(values: list[float], share: float) -> None:
    """A mean is never below the smallest nor above the largest value."""
    mean = RunningMean(share)
    for value in values:
        mean.add(value)
    assert mean.value is not None
    assert min(values) - 1e-6 <= mean.value <= max(values) + 1e-6


def test_a_first_guess_counts_like_a_value() -> None:
    """A mean may begin with an estimate."""
    mean = RunningMean(0.2, 1.0)
    mean.add(2.0)
    assert mean.value == pytest.approx(1.2)
