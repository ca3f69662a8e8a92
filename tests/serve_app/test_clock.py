"""The clock that orders requests: it never goes back, whatever is done to the machine's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serve_app.clock import SteadyClock

MOVES = st.lists(st.tuples(st.floats(0, 100), st.sampled_from([0.0, 900.0, -900.0, 0.5, -0.5])), max_size=30)


@given(MOVES)
def test_it_never_goes_back(moves: list[tuple[float, float]]) -> None:
    """Over random steps of the wall clock in both directions a later call never gives an earlier time."""
    now, wall = 0.0, 1e9
    clock = SteadyClock(lambda: wall, lambda: now)
    last = clock()
    for seconds, step in moves:
        now, wall = now + seconds, wall + seconds + step
        assert clock() >= max(last, wall)
        assert seconds < 0.001 or clock() > last
        last = clock()


def test_it_catches_up() -> None:
    """Set back by 900 s it runs at half pace, and is right again after as long again as it was wrong."""
    now, wall = 0.0, 1e9
    clock = SteadyClock(lambda: wall, lambda: now)
    wall -= 900
    for _ in range(18):
        now, wall = now + 100, wall + 100
        clock()
    assert clock() == wall == 1e9 + 900
