"""What a render is expected to cost: learnt from what videos say they took."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serve_app.core import Entry, described
from serve_app.service.render_cost import Cost, work_of
from tests.serve_app.service.rig import SPEC


def video(seconds: float, **changes: object) -> Entry:
    meta = {"spec": described(replace(SPEC, **changes)), "render_seconds": seconds, "encode_seconds": 0.5}  # type: ignore[arg-type]
    return Entry.of("k", b"video", meta)


def test_cost_goes_with_the_work() -> None:
    """Twice the steps cost twice as much; an unguided render half; what a render took includes its encoding."""
    cost = Cost()
    assert (cost.is_known, cost.seconds(SPEC)) == (False, None)
    cost.learn(video(1.5))
    assert cost.seconds(SPEC) == pytest.approx(2.0)
    assert cost.seconds(replace(SPEC, num_inference_steps=2 * SPEC.num_inference_steps)) == pytest.approx(4.0)
    assert cost.seconds(replace(SPEC, guidance_scale=1.0)) == pytest.approx(1.0)
    assert work_of(SPEC) == SPEC.num_inference_steps * 2 * SPEC.num_frames * SPEC.width * SPEC.height


def test_the_latest_renders_count() -> None:
    """A device that became slower is believed after a few renders."""
    cost = Cost()
    cost.learn(video(0.5))
    for _ in range(30):
        cost.learn(video(9.5))
    assert cost.seconds(SPEC) == pytest.approx(10.0, rel=0.01)


@pytest.mark.parametrize("meta", [{}, {"spec": {"model": "m"}, "render_seconds": 1.0}, {"spec": 5}])
def test_what_does_not_say_it_teaches_nothing(meta: dict[str, object]) -> None:
    """An entry of another release, without a whole spec or its seconds, is passed over."""
    cost = Cost()
    cost.learn(Entry.of("k", b"video", meta))
    assert not cost.is_known
