"""What a request means: the same spec and keys however the prompt was typed, refused where the model cannot read it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core import Priority, Urgency
from serve_app.errors import Unprocessable
from serve_app.model.families import load_family
from serve_app.service.plan import Planner
from tests.serve_app.service.rig import ask

PLANNER = Planner(load_family("native/demo"), "encoder", max_prompt_chars=120)


def test_typing_does_not_matter() -> None:
    """Case, blanks, quotes at the edges and repeated marks give one plan; what was typed is kept beside it."""
    plain = PLANNER.plan(ask("a red circle moves left"))
    typed = PLANNER.plan(ask('  "A RED\u200b circle  moves left"!! '))
    assert (typed.spec, typed.keys) == (plain.spec, plain.keys)
    assert typed.asked.startswith('  "A RED')
    assert plain.changes == ()
    assert typed.changes


@pytest.mark.parametrize("prompt", ["", "   ", "\u200b", "!!", "\n\t", '""'])
def test_an_empty_prompt(prompt: str) -> None:
    """A prompt of which nothing is left is refused by name."""
    with pytest.raises(Unprocessable, match="empty") as refused:
        PLANNER.plan(ask(prompt))
    assert refused.value.param == "prompt"


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_too_long(field: str) -> None:
    """Over the character limit or the model's tokens, either prompt is refused by name, not cut."""
    roomy = Planner(load_family("native/demo"), "encoder", max_prompt_chars=10_000)
    for planner, text, unit in ((PLANNER, "a" * 121, "characters"), (roomy, "a" * 5_000, "tokens")):
        with pytest.raises(Unprocessable, match=unit) as refused:
            planner.plan(ask(**({"prompt": "p"} | {field: text})))
        assert refused.value.param == field


def test_a_deployments_negative_prompt() -> None:
    """Who says nothing gets the deployment's, who says it gets the same keys, who says "" none; it is checked first."""

    def opened(negative_prompt: str) -> Planner:
        return Planner(load_family("native/demo"), "encoder", max_prompt_chars=120, negative_prompt=negative_prompt)

    planner = opened("A beutiful  star")
    silent = planner.plan(ask("a red circle"))
    assert (silent.spec.negative_prompt, silent.corrected) == ("a beautiful star", ())
    assert silent.keys == PLANNER.plan(ask("a red circle", negative_prompt="a beautiful star")).keys
    assert planner.plan(ask("a red circle", negative_prompt="")).keys == PLANNER.plan(ask("a red circle")).keys
    with pytest.raises(Unprocessable, match="'negative_prompt' has 121 characters"):
        opened("a" * 121)


def test_explained_is_the_plan() -> None:
    """The explanation shows prompt, normalised form, three keys and the whole spec."""
    plan = PLANNER.plan(ask("A circle", seed=7))
    told = plan.explained()
    assert (told["prompt"], told["normalised"], told["spec"]["seed"]) == ("A circle", "a circle", 7)
    assert told["keys"] == {"prompt": plan.keys.prompt, "latents": plan.keys.latents, "video": plan.keys.video}


def test_typos_are_corrected_told_and_refused() -> None:
    """A mistyped word finds the earlier video and is told; refused, it is another prompt, seen as typed."""
    plan = PLANNER.plan(ask("a red pianno", negative_prompt="a beutiful and red pianno"))
    assert plan.keys == PLANNER.plan(ask("a red piano", negative_prompt="a beautiful and red piano")).keys
    assert plan.explained()["corrected"] == [
        {"from": "pianno", "to": "piano"}, {"from": "beutiful", "to": "beautiful"}
    ]  # fmt: skip
    refused = PLANNER.plan(ask("a red pianno", correct_typos=False))
    assert (refused.spec.prompt, refused.corrected) == ("a red pianno", ())
    assert refused.keys != plan.keys
    assert PLANNER.plan(ask("a red piano", correct_typos="false")).keys == PLANNER.plan(ask("a red piano")).keys


@given(
    st.sampled_from(["a red circle", "a blue pianno"]),
    st.sampled_from(Priority) | st.none(),
    st.floats(0, 86_400, exclude_min=True) | st.none(),
    st.floats(0, 4e9),
)
def test_urgency_is_in_no_key(prompt: str, priority: Priority | None, seconds: float | None, now: float) -> None:
    """However soon and for whom a video is wanted, and whenever that is asked, spec, keys and explanation are one."""
    planner = Planner(load_family("native/demo"), "encoder", max_prompt_chars=120, clock=lambda: now)
    plain, hurried = PLANNER.plan(ask(prompt)), planner.plan(ask(prompt, priority=priority, deadline_seconds=seconds))
    assert (hurried.spec, hurried.keys, hurried.explained()) == (plain.spec, plain.keys, plain.explained())
    deadline = None if seconds is None else now + seconds
    assert hurried.urgency == Urgency(priority or Priority.INTERACTIVE, deadline)
    assert plain.urgency == Urgency()


@given(st.text(max_size=40), st.sampled_from([str.upper, str.title, str.strip, lambda text: f" {text} "]))
def test_the_normalised_prompt_plans_alike(text: str, change: Callable[[str], Any]) -> None:
    """Asking with the normalised form, in any case and with blanks around, gives the very same keys."""
    try:
        plan = PLANNER.plan(ask(text))
    except Unprocessable:
        return
    assert PLANNER.plan(ask(plan.spec.prompt)).keys == plan.keys
    if plan.spec.prompt.isascii() and not {*"\"'`"} & {*plan.spec.prompt}:  # what is in quotes keeps its case
        assert PLANNER.plan(ask(change(plan.spec.prompt))).keys == plan.keys
