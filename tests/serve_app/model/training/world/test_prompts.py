"""Training prompts: in normal form, from the training side of both splits, sometimes partial or with foreign words."""

from __future__ import annotations

import re
from dataclasses import astuple

import numpy as np
import pytest

from serve_app.model.training.world import captions, prompts
from serve_app.model.training.world.prompts import common_words, corpus, normaliser, training_prompt
from serve_app.model.training.world.world import Scene, scenes

SCENE = Scene("star", "red", "white", "large", "up")


def drawn(count: int, seed: int = 0) -> list[tuple[str, Scene]]:
    rng = np.random.default_rng(seed)
    return [training_prompt(SCENE, rng) for _ in range(count)]


def test_prompts_are_in_the_form_that_the_server_makes() -> None:
    """Normalising a training prompt once more changes nothing: the model is asked what it was taught."""
    for prompt, _ in drawn(200):
        assert normaliser().trace(prompt).text == prompt


def test_what_is_said_is_part_of_the_scene() -> None:
    """What a prompt is said to mean never contradicts the scene; about a quarter leave something open."""
    said = [scene for _, scene in drawn(400)]
    for scene in said:
        assert all(value in (None, whole) for value, whole in zip(astuple(scene), astuple(SCENE), strict=True))
    share = sum(scene != SCENE for scene in said) / len(said)
    assert abs(share - prompts.OPEN) < 0.1


def test_some_prompts_carry_words_of_no_meaning_here() -> None:
    """Some English prompts end or begin with words of the dictionary that no caption has."""
    rng = np.random.default_rng(0)
    own = " ".join(captions.caption(SCENE, rng) for _ in range(500))
    foreign = set(common_words()) - set(re.findall(r"[a-z-]+", own))
    carrying = [prompt for prompt, _ in drawn(200) if foreign & set(re.findall(r"[a-z]+", prompt))]
    assert 10 < len(carrying) < 150


def test_training_never_speaks_in_held_out_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the held-out templates, training prompts and the tokenizer's texts are the very same."""
    before = drawn(300), list(corpus(np.random.default_rng(0), 300))
    monkeypatch.setattr(captions, "_HELD_OUT", {})
    assert (drawn(300), list(corpus(np.random.default_rng(0), 300))) == before


def test_the_tokenizer_learns_from_training_scenes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The corpus holds as many captions as asked, none of a held-out scene, and the dictionary."""
    asked: list[Scene] = []
    monkeypatch.setattr(prompts, "training_prompt", lambda scene, rng: (asked.append(scene) or "text", scene))
    texts = list(corpus(np.random.default_rng(0), 500))
    assert texts == ["text"] * 500 + [f" {word}" for word in common_words()]
    assert set(asked) <= set(scenes(held_out=False))
    assert len(set(asked)) > 400
