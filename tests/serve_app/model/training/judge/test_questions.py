"""The judge's questions: only what training never saw, evenly over languages and templates."""

from __future__ import annotations

from collections import Counter

import pytest

from serve_app.model.training.judge.questions import questions
from serve_app.model.training.world import captions
from serve_app.model.training.world.prompts import normaliser
from serve_app.model.training.world.world import scenes


def test_only_held_out_scenes_are_asked_for() -> None:
    """Every question is about a held-out combination, and none comes twice before all came once."""
    every = scenes(held_out=True)
    asked = questions(len(every) + 20)
    assert Counter(question.scene for question in asked[: len(every)]) == Counter(every)
    assert all(question.scene.held_out for question in asked)


def test_languages_and_templates_take_turns() -> None:
    """Of four questions in a row each language has two, one of them in a held-out template."""
    kinds = [(question.language, question.held_out_template) for question in questions(400)]
    assert Counter(kinds) == dict.fromkeys([(lang, held) for lang in ("en", "zh") for held in (False, True)], 100)
    assert len(set(kinds[:4])) == 4


def test_half_of_them_use_the_held_out_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions change with the held-out templates exactly where they say so."""
    before = questions(40)
    monkeypatch.setattr(captions, "_HELD_OUT", {"en": ("QQ {subject}",), "zh": ("QQ{subject}",)})
    marked = ["qq" in question.prompt for question in questions(40)]
    assert marked == [question.held_out_template for question in before]


def test_questions_are_in_normal_form_and_seeded() -> None:
    """Equal seeds ask the same, others do not; prompts are as the server hands them to the model."""
    asked = questions(30, seed=3)
    assert asked == questions(30, seed=3)
    assert asked != questions(30, seed=4)
    assert len({question.seed for question in asked}) == 30
    assert all(normaliser().trace(question.prompt).text == question.prompt for question in asked)
