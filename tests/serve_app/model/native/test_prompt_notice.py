"""What the demo does not understand is told, and what it was trained to read never is."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core import PromptRules
from serve_app.model.native import words
from serve_app.model.native.prompt_notice import MAX_WORDS, prompt_notice
from serve_app.model.training.world import captions, prompts
from serve_app.model.training.world.world import ATTRIBUTES, scenes
from serve_app.prompt.prompt import normalise


def notice(prompt: str) -> str:
    return " ".join(prompt_notice(normalise(prompt, PromptRules())))


@pytest.mark.parametrize("language", captions.LANGUAGES)
@pytest.mark.parametrize("held_out", [False, True])
def test_no_caption_gets_a_notice(language: str, held_out: bool) -> None:
    """Of 2,000 captions of each language and side of the split, full and partly open, none is told anything."""
    rng = np.random.default_rng([7, held_out])
    every = scenes(held_out)
    for index in rng.integers(len(every), size=2_000):
        scene = prompts._partly(every[index], rng) if rng.random() < 0.3 else every[index]
        caption = captions.caption(scene, rng, language, held_out=held_out)
        if language == "zh" and rng.random() < 0.3:
            caption += f",{','.join(rng.choice(prompts._ZH_EXTRA, size=2))}"
        assert notice(caption) == "", caption


def test_the_words_are_in_step_with_the_captions() -> None:
    """The plain tables say of each value what captions say of it, no more and no less, and know their fillers."""
    said = {"shape": captions._SHAPES, "color": captions._COLORS, "size": captions._SIZES}
    said["background"] = captions._BACKGROUNDS
    said["motion"] = {value: [form for pair in pairs for form in pair] for value, pairs in captions._MOTIONS.items()}
    for attribute, values in ATTRIBUTES.items():
        known = words.ATTRIBUTES[attribute]
        assert tuple(known) == tuple(values)
        for value, phrases in known.items():
            assert phrases.split(", ") == [*said[attribute][value], *captions._ZH[attribute][value]]
    fillers = words.FILLERS.split(", ")
    assert {*captions._MANNERS["en"], *captions._MANNERS["zh"], *prompts._ZH_EXTRA} - {""} <= {*fillers}


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("a cat playing the piano", "The model did not understand: cat, playing, piano."),
        ("a red circle, 4k", "The model did not understand: 4k."),
        ("a white circle", "The model did not understand: white."),
        ("a red circle on a blue background", "The model did not understand: blue background."),
        ("a red circle on the left", "The model did not understand: on the left."),
        ("a circle and a square", "It shows one shape; circle and square were named."),
        ("a red and blue circle", "It shows one color; red and blue were named."),
        ("a small, huge star", "It shows one size; small and huge were named."),
        ("a star rises and falls", "It shows one motion; rises and falls were named."),
        (
            "a star on a white background over a black wall",
            "It shows one background; white and black were named.",
        ),
        ("a circle that is not red", "It does not understand negation: not red."),
        ("a circle without a background", "It does not understand negation: without a background."),
        ("a red circle doesn't rest", "It does not understand negation: doesn't"),
        ("three circles", "It shows one shape and cannot count: three, circles."),
        ("3 red stars", "It shows one shape and cannot count: 3, stars."),
        ("一只猫在弹钢琴", "The model did not understand: 猫, 弹钢琴."),
        ("红色小猫", "The model did not understand: 小猫."),
        ("蓝色背景上的红色圆形", "The model did not understand: 蓝色背景."),
        ("红色的圆形和蓝色的方块", "It shows one shape; 圆形 and 方块 were named."),
        ("三个红色圆形", "It shows one shape and cannot count: 三个."),
        ("不是红色的圆形", "It does not understand negation: 不是红色."),
        ("没有背景的圆形", "It does not understand negation: 没有背景."),
        ("un círculo rojo se mueve a la izquierda", "It reads English and Chinese only."),
        ("красный круг движется влево", "It reads English and Chinese only."),
        ("赤い円が左に動く", "It reads English and Chinese only."),
        ("빨간 원이 움직인다", "The model did not understand: 빨간, 원이, 움직인다."),
        ("\N{LARGE RED CIRCLE} moves left", "The model did not understand: \N{LARGE RED CIRCLE}."),
    ],
)
def test_what_is_not_understood_is_told(prompt: str, told: str) -> None:
    """Words of another world, two values of one attribute, negation, numbers and other languages each are named."""
    assert told in notice(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        "Please generate a video of a red circle moving left", "A RED CIRCLE, moving slowly to the left!",
        "a big red ball bounces against a grey wall", "a blue square on black", "a green heart in the sky",
        "a red circle moves from left to right", "a yelow star spinning", "a star that does not move",
        "one orange cross; sky-blue background", "look at a red thing", "帮我生成一个红色圆形向左移动的视频",
        "白色的背景上,一颗黄色的星星在旋转", "紅色圓形向左移動", "1 circle",
    ],
)  # fmt: skip
def test_what_is_understood_gets_no_notice(prompt: str) -> None:
    """Wrappers, typing mistakes, traditional characters and what is said in another order are no reason for one."""
    assert notice(prompt) == ""


@given(st.text(max_size=300) | st.text("不没有 三个圆a'not-2", max_size=60))
def test_any_text_gets_a_bounded_answer(text: str) -> None:
    """Whatever is in a prompt, each sentence is one line and names at most ten words, cut where they are long."""
    for sentence in prompt_notice(normalise(text, PromptRules())):
        assert len(sentence) < 400
        assert sentence.count(", ") <= MAX_WORDS
        assert "\n" not in sentence


def test_many_words_are_counted() -> None:
    """Of more than ten words the rest is counted."""
    assert notice(" ".join(f"w{number}q" for number in range(14))).endswith("w9q and 4 more.")


def test_a_router_imports_no_torch_for_it() -> None:
    """The card with its notices comes without torch, because every router has it."""
    program = (
        "import sys; from serve_app.model.families import load_family; "
        "told = load_family('native/demo').card.prompt_notice('a cat'); assert told, told; "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
