"""Which POST repeats which: digests of fields, names of tries, and marks in memory."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import KeyReused
from serve_app.schema import parse_request
from serve_app.service.jobs.idempotency import FIRST, Mark, Marks, RequestAttempt, mark_of
from tests.serve_app.service.rig import SECRET, Clock, ask

RETRY = RequestAttempt(retried=True)

FIELDS = st.fixed_dictionaries(
    {"prompt": st.text(st.characters(exclude_categories=("Cs",)), max_size=5)},
    optional={
        "seed": st.sampled_from([1, 2, "random"]),
        "fps": st.sampled_from([8, 16]),
        "deadline_seconds": st.sampled_from([1.5, 60]),
    },
)


@given(FIELDS, FIELDS)
def test_digests_are_of_the_fields(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Two requests have one digest if and only if they say the same, in whatever form and order they say it."""
    digests = [mark_of(SECRET, parse_request(fields), FIRST).digest for fields in (one, other)]
    assert (digests[0] == digests[1]) == (one == other)
    spelled = {name: str(value) for name, value in reversed(one.items())} | {"model": None}
    assert mark_of(SECRET, parse_request(spelled), FIRST).digest == digests[0]


def test_what_a_mark_is_made_of() -> None:
    """A key names its tries whatever their fields; without one the fields do, for a minute; nothing is in the clear."""
    named = [mark_of(SECRET, ask(seed=seed), RequestAttempt("my key")) for seed in (1, 2)]
    assert named[0].name == named[1].name
    assert named[0].digest != named[1].digest
    assert {(mark.asks, mark.seconds) for mark in named} == {(True, 86_400)}
    first, again = mark_of(SECRET, ask(), FIRST), mark_of(SECRET, ask(), RETRY)
    assert (first.name, first.digest, first.seconds, first.asks) == (again.name, again.digest, 60, False)
    assert again.asks
    assert mark_of(b"another secret", ask(), FIRST).name != first.name
    assert mark_of(SECRET, ask(), RequestAttempt(first.name)).name != first.name
    assert not FIRST.may_repeat
    assert RETRY.may_repeat


def test_what_answers_a_mark() -> None:
    """A retry and a key are answered by the first job, a first try by none; a key with other fields is refused."""
    marks, clock = Marks(clock=(clock := Clock())), clock
    key = Mark("k", "d" * 64, 100.0, True)
    assert marks.answer(key) is None
    marks.leave(key, "video_1", 1000.0)
    assert marks.answer(key) == "video_1"
    assert marks.answer(Mark("k", "d" * 64, 100.0, False)) is None
    assert marks.answer(Mark("k", "d" * 64, 100.0, True, instead_of="video_1")) is None
    with pytest.raises(KeyReused):
        marks.answer(Mark("k", "e" * 64, 100.0, True))
    clock.now += 100
    assert marks.answer(key) is None


def test_a_mark_lives_no_longer_than_its_job() -> None:
    """A key whose job has expired names nothing any more."""
    marks, clock = Marks(clock=(clock := Clock())), clock
    marks.leave(Mark("k", "d", 100.0, True), "video_1", 10.0)
    clock.now += 10
    assert marks.answer(Mark("k", "d", 100.0, True)) is None


def test_marks_are_bounded() -> None:
    """Beyond `max_marks` the oldest is forgotten, where to leave one again makes it young."""
    marks = Marks(max_marks=2)
    for name in ("a", "b", "a", "c"):
        marks.leave(Mark(name, "d", 100.0, True), name, 100.0)
    assert [marks.answer(Mark(name, "d", 100.0, True)) for name in "abc"] == ["a", None, "c"]
