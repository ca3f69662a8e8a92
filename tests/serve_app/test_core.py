"""The nouns: grids, specs, entries, outcomes."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core import Entry, FloatRange, IntRange, JobStatus, Outcome, PromptRules, VideoSpec

SPEC = VideoSpec(
    model="native/demo",
    prompt="a cat",
    negative_prompt="",
    seed=42,
    width=96,
    height=64,
    num_frames=24,
    fps=6,
    num_inference_steps=8,
    guidance_scale=5.0,
)

ranges = st.builds(
    lambda minimum, length, step: IntRange(minimum, minimum + length, minimum, step),
    st.integers(-100, 100),
    st.integers(0, 60),
    st.integers(1, 17),
)


@given(ranges, st.integers(-200, 300))
def test_membership_is_the_grid(grid: IntRange, value: int) -> None:
    """A value is allowed exactly if counting up from the minimum by the step reaches it."""
    assert (value in grid) is (value in range(grid.minimum, grid.maximum + 1, grid.step))


@given(ranges, st.integers(-200, 300))
def test_nearest_are_the_neighbours_on_the_grid(grid: IntRange, value: int) -> None:
    """The nearest values are allowed, ascending, and no allowed value lies between them and the one asked for."""
    nearest = grid.nearest(value)
    allowed = range(grid.minimum, grid.maximum + 1, grid.step)
    below = [a for a in allowed if a <= value][-1:]
    above = [a for a in allowed if a >= value][:1]
    assert nearest == tuple(sorted({*below, *above}))


@given(ranges, st.data())
def test_an_allowed_value_is_its_own_nearest(grid: IntRange, data: st.DataObject) -> None:
    """A value on the grid needs no advice."""
    value = data.draw(st.sampled_from(range(grid.minimum, grid.maximum + 1, grid.step)))
    assert grid.nearest(value) == (value,)


@pytest.mark.parametrize(("value", "allowed"), [(1.0, True), (20.0, True), (0.999, False), (20.001, False)])
def test_float_range_includes_both_ends(value: float, allowed: bool) -> None:
    """Both ends belong to the range, nothing beyond them does."""
    assert (value in FloatRange(1.0, 20.0, 5.0)) is allowed


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_float_range_has_no_strange_numbers(value: float) -> None:
    """Not-a-number and infinity are never allowed, not even by an infinite range."""
    assert value not in FloatRange(-math.inf, math.inf, 0.0)


@pytest.mark.parametrize("outcome", Outcome)
def test_only_finished_videos_are_hits(outcome: Outcome) -> None:
    """A hit computed nothing: one of the three tiers had the file."""
    assert outcome.is_hit is (outcome.value in {"l1", "l2", "l3"})


def test_outcomes_are_their_words() -> None:
    """Outcomes go into headers and metrics as the words of the design."""
    assert [str(o) for o in Outcome] == ["l1", "l2", "l3", "joined", "latents", "resumed", "rendered"]


def test_statuses_are_openais() -> None:
    """The four words of the OpenAI Videos API, of which two are final."""
    assert [str(s) for s in JobStatus] == ["queued", "in_progress", "completed", "failed"]
    assert [s for s in JobStatus if s.is_final] == [JobStatus.COMPLETED, JobStatus.FAILED]


def test_size_and_seconds_of_a_spec() -> None:
    """The OpenAI forms derive from the canonical fields."""
    assert SPEC.size == "96x64"
    assert SPEC.seconds == 4.0


def test_specs_are_values() -> None:
    """Equal specs are equal and hash alike, survive a pickle, and cannot be changed after their key was made."""
    again = pickle.loads(pickle.dumps(SPEC))
    assert again == SPEC
    assert len({again, SPEC}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        again.seed = 1


@given(st.binary())
def test_entry_knows_its_digest_and_size(data: bytes) -> None:
    """An entry made from bytes carries their SHA-256 and length."""
    entry = Entry.of("key", data, {"fps": 16})
    assert entry.digest == hashlib.sha256(data).hexdigest()
    assert entry.size == len(data)
    assert entry.meta == {"fps": 16}


def test_entry_keeps_its_own_meta() -> None:
    """Changing the mapping an entry was made from does not change the entry."""
    meta = {"fps": 16}
    entry = Entry.of("key", b"", meta)
    meta["fps"] = 1
    assert entry.meta == {"fps": 16}


def test_every_switch_of_the_prompt_rules_is_in_their_version() -> None:
    """Prompts normalised by different rules never share a key."""
    booleans = [f.name for f in dataclasses.fields(PromptRules)]
    versions = {PromptRules().version}
    for name in booleans:
        versions.add(dataclasses.replace(PromptRules(), **{name: not getattr(PromptRules(), name)}).version)
    assert len(versions) == len(booleans) + 1
