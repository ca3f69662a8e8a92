"""Captions as the model gets them: open attributes, both languages, words that mean nothing here, normal form.

A prompt that says more than the world knows must not confuse what it says of the world, so some captions carry words
drawn from the English dictionary, and some describe only a part of their scene.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import fields

import numpy as np

from serve_app.core import PromptRules
from serve_app.model.training.world.captions import LANGUAGES, caption
from serve_app.model.training.world.world import Scene, scenes
from serve_app.prompt import words
from serve_app.prompt.prompt import Normaliser

OPEN = 0.25
"""How often a caption leaves attributes open; each of them then with even odds."""
FILLED = 0.3
"""How often a caption carries foreign words."""


@functools.cache
def normaliser() -> Normaliser:
    """Return the normaliser of the model's card, for a deployment without words of its own."""
    return Normaliser(PromptRules())


def training_prompt(scene: Scene, rng: np.random.Generator) -> tuple[str, Scene]:
    """Return a prompt in normal form and what it says of `scene`."""
    said = _partly(scene, rng) if rng.random() < OPEN else scene
    text = caption(said, rng, LANGUAGES[rng.integers(len(LANGUAGES))])
    if rng.random() < FILLED:
        text = _filled(text, rng)
    return normaliser().trace(text).text, said


def corpus(rng: np.random.Generator, captions: int) -> Iterator[str]:
    """Yield what the tokenizer learns from: captions, and the dictionary's common words with a blank before each."""
    every = scenes(held_out=False)
    for i in rng.integers(len(every), size=captions):
        yield training_prompt(every[i], rng)[0]
    for word in common_words():
        yield f" {word}"


@functools.cache
def common_words() -> tuple[str, ...]:
    """Return the dictionary's common words, sorted."""
    return tuple(sorted(word for word, common in words.english().items() if common))


def _partly(scene: Scene, rng: np.random.Generator) -> Scene:
    kept = rng.random(5) < 0.5
    return Scene(*(getattr(scene, f.name) if keep else None for f, keep in zip(fields(scene), kept, strict=True)))


_ZH_EXTRA = (
    "高清",
    "电影感",
    "画质清晰",
    "简单动画",
    "卡通风格",
    "可爱",
    "明亮",
    "没有文字",
    "不要水印",
    "背景干净",
    "循环播放",
    "短视频",
)


def _filled(text: str, rng: np.random.Generator) -> str:
    if rng.random() < 0.4:
        return f"{text},{','.join(_ZH_EXTRA[i] for i in rng.integers(len(_ZH_EXTRA), size=rng.integers(1, 4)))}"
    extra = " ".join(common_words()[i] for i in rng.integers(len(common_words()), size=rng.integers(1, 6)))
    return f"{text}, {extra}" if rng.random() < 0.7 else f"{extra}, {text}"
