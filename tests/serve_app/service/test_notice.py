"""A notice comes from the spec and the card alone; it is bounded, in no key, and silent where nothing is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from serve_app.core import Judged
from serve_app.model.families import load_family
from serve_app.service.notice import MAX_CHARS, NAMES, notice_of
from serve_app.service.plan import Planner
from tests.serve_app.service.rig import SPEC, ask

DEMO = load_family("native/demo")
CARD = DEMO.card
PLANNER = Planner(DEMO, "encoder", max_prompt_chars=2_000)


@pytest.mark.parametrize("name", NAMES)
def test_beyond_what_was_judged(name: str) -> None:
    """A setting at either end of what was judged is silent; one beyond is named with the range."""
    judged = replace(CARD, judged=Judged((10, 20), (5, 30), (1.5, 5.0)))
    least, most = getattr(judged.judged, name)
    for value in (least, most):
        assert notice_of(_spec({name: value}), judged) is None
    for value in (least - 0.5, most + 1):
        told = notice_of(_spec({name: value}), judged)
        assert told is not None
        assert f"'{name}' from {least:g} to {most:g}; with {value:g} nobody looked" in told


def test_the_demo_says_what_was_judged() -> None:
    """Requests for few or many steps and for strong guidance are accepted with a notice; the defaults are silent."""
    assert PLANNER.plan(ask()).notice is None
    for fields in ({"num_inference_steps": 2}, {"num_inference_steps": 50}, {"guidance_scale": 9}):
        assert next(iter(fields)) in str(PLANNER.plan(ask(**fields)).notice)


def test_it_is_about_the_normalised_prompt_and_in_no_key() -> None:
    """Two prompts of one meaning get one notice, the explanation has it, and a card without it gives the same keys."""
    plan = PLANNER.plan(ask("A CAT,  playing the pianno!"))
    assert plan.notice == "The model did not understand: cat, playing, piano."
    assert plan.notice == PLANNER.plan(ask("a cat, playing the piano")).notice == plan.explained()["notice"]

    class Silent:
        card = replace(CARD, prompt_notice=None, judged=None)
        count_tokens = staticmethod(DEMO.count_tokens)

    silent = Planner(Silent(), "encoder", max_prompt_chars=2_000).plan(ask("a cat, playing the piano"))  # type: ignore[arg-type]
    assert (silent.notice, silent.keys) == (None, plan.keys)


def test_it_is_bounded() -> None:
    """However much there is to say, a notice has at most 500 characters."""
    words = " ".join(f"not {chr(97 + n) * 30} {n + 2} círculo{n} " for n in range(12))
    told = notice_of(replace(SPEC, prompt=words, num_inference_steps=50, guidance_scale=9.0), CARD)
    assert told is not None
    assert len(told) == MAX_CHARS


def _spec(fields: dict[str, Any]) -> Any:
    return replace(SPEC, **({"num_frames": 16, "num_inference_steps": 16, "guidance_scale": 2.0} | fields))
