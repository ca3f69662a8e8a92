import itertools
import json
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.model.training.judge import judge
from serve_app.model.training.judge.judge import Score, Table, Verdict
from serve_app.model.training.world import world
from serve_app.model.training.world.world import Scene

STAR = Scene("star", "red", "white", "large", "rotate")
CIRCLE = replace(STAR, shape="circle")


def test_each_attribute_is_compared() -> None:
    """One attribute off is one attribute missed."""
    assert judge.matches(STAR, STAR) == dict.fromkeys(world.ATTRIBUTES, True)
    for name in world.ATTRIBUTES:
        assert judge.matches(STAR, replace(STAR, **{name: None})) == dict.fromkeys(world.ATTRIBUTES, True) | {
            name: False
        }


def test_an_open_attribute_is_not_compared() -> None:
    """What the caption leaves open cannot be missed."""
    assert judge.matches(replace(STAR, color=None, motion=None), replace(STAR, color="blue")) == {
        "shape": True,
        "background": True,
        "size": True,
    }


@pytest.mark.parametrize(("asked", "seen"), list(itertools.product(("rotate", "still", "left"), repeat=2)))
def test_a_circle_may_rest_where_it_should_rotate(asked: str, seen: str) -> None:
    """Rotate and still are one motion for a circle that was asked for, and for nothing else."""
    alike = asked == seen or {asked, seen} == {"rotate", "still"}
    circle = judge.matches(replace(CIRCLE, motion=asked), replace(CIRCLE, motion=seen))
    star = judge.matches(replace(STAR, motion=asked), replace(CIRCLE, motion=seen))
    assert circle["motion"] == alike
    assert star["motion"] == (asked == seen)


def test_a_rotating_circle_is_judged_right() -> None:
    """The rule makes up for what the oracle cannot see."""
    clip = world.render([CIRCLE], np.random.default_rng(0))[0]
    assert all(judge.judge(CIRCLE, clip).met.values())


def test_a_table_counts_what_was_asked() -> None:
    """Each attribute is counted over the clips that were asked for it, `all` over every clip."""
    blue = replace(STAR, color="blue")
    table = judge.tabulate(
        [Verdict(STAR, STAR), Verdict(STAR, blue), Verdict(replace(STAR, color=None, size=None), blue)]
    )
    assert table == Table(
        {
            "shape": Score(3, 3),
            "color": Score(1, 2),
            "background": Score(3, 3),
            "size": Score(2, 2),
            "motion": Score(3, 3),
            "all": Score(2, 3),
        }
    )


def test_a_table_has_no_row_without_clips() -> None:
    """What was never asked has no score, so no share is ever nought by nought."""
    color_only = Scene(None, "red", None, None, None)
    assert set(judge.tabulate([Verdict(color_only, STAR)]).scores) == {"color", "all"}
    assert judge.tabulate([]) == Table({})


def test_a_table_is_json() -> None:
    """A table goes into a model card as it is."""
    row = json.loads(json.dumps(Table({"color": Score(1, 4)}).as_dict()))["color"]
    assert (row["correct"], row["n"], row["share"]) == (1, 4, 0.25)
    assert row["interval"] == pytest.approx([0.0456, 0.6994], abs=1e-4)


def test_the_ceiling_shows_what_a_reconstruction_loses() -> None:
    """Frames in reverse lose the directed motions alone; channels in reverse lose colours and keep shapes."""
    reverse = judge.ceiling(25, seed=2, reconstruct=lambda clip: clip.flip(0)).scores
    bgr = judge.ceiling(25, seed=2, reconstruct=lambda clip: clip.flip(-1)).scores
    assert reverse["motion"].share < 0.6
    assert all(reverse[name].share == 1 for name in ("shape", "color", "background", "size"))
    assert bgr["color"].share < 0.6
    assert all(bgr[name].share == 1 for name in ("shape", "size", "motion"))


def test_the_ceiling_is_seeded() -> None:
    """Equal seeds show the same clips to every reconstruction, other seeds others."""
    shown: list[list[bytes]] = []
    for seed in (4, 4, 5):
        clips: list[bytes] = []
        judge.ceiling(3, seed, reconstruct=lambda clip, clips=clips: clips.append(clip.numpy().tobytes()) or clip)
        shown.append(clips)
    assert shown[0] == shown[1] != shown[2]
    assert len(set(shown[0])) == 3


@pytest.mark.parametrize(
    ("correct", "n", "interval"),
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_intervals_are_those_of_the_literature(correct: int, n: int, interval: tuple[float, float]) -> None:
    """Newcombe's table of Wilson intervals (Statistics in Medicine 17, 1998, table I) comes out to four digits."""
    assert judge.wilson_interval(correct, n) == pytest.approx(interval, abs=5e-5)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_interval_holds_its_share(counts: tuple[int, int]) -> None:
    """Every interval lies in [0, 1], has its share in it and is the mirror of that of the misses."""
    correct, n = counts
    low, high = judge.wilson_interval(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    assert low < high
    assert judge.wilson_interval(n - correct, n) == pytest.approx((1 - high, 1 - low))


def test_every_attribute_can_be_missed() -> None:
    """A scene that shares nothing with the one asked for scores nought in each row."""
    other = Scene("square", "blue", "black", "small", "left")
    assert {score.correct for score in judge.tabulate([Verdict(STAR, other)]).scores.values()} == {0}
    assert not set(astuple(STAR)) & set(astuple(other))
