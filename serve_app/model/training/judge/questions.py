"""What the judge asks: combinations that training never saw, half of them in templates that it never saw either."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serve_app.model.training.world.captions import LANGUAGES, caption
from serve_app.model.training.world.prompts import normaliser
from serve_app.model.training.world.world import Scene, drawn, scenes


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt in normal form, and the scene it asks for, with nothing left open."""

    prompt: str
    scene: Scene
    language: str
    held_out_template: bool
    seed: int


def questions(count: int, seed: int = 0) -> tuple[Question, ...]:
    """Return `count` questions on held-out scenes: languages take turns, and so do known and held-out templates."""
    rng = np.random.default_rng([seed, 4])
    asked = drawn(scenes(held_out=True), count, rng)
    return tuple(_question(scene, i, rng) for i, scene in enumerate(asked))


def _question(scene: Scene, i: int, rng: np.random.Generator) -> Question:
    language = LANGUAGES[i % len(LANGUAGES)]
    held_out = bool(i // len(LANGUAGES) % 2)
    prompt = normaliser().trace(caption(scene, rng, language, held_out=held_out)).text
    return Question(prompt, scene, language, held_out, seed=int(rng.integers(1 << 31)))
