"""Wrappers go where the rest is a prompt of its own, and only there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core import PromptRules
from serve_app.prompt.prompt import normalise
from serve_app.prompt.wrappers import unwrapped

ON = PromptRules()


@pytest.mark.parametrize(
    "wrapped",
    [
        "generate a video of a cat playing piano",
        "Please make a clip showing a cat playing piano.",
        "Could you please create a video that shows a cat playing piano?",
        "I want a video of a cat playing piano",
        "I'd like you to make me a video clip of a cat playing piano",
        "Show me a video of a cat playing piano",
        "create a video: a cat playing piano",
        'Generate a video of "a cat playing piano"',
        "please generate a video of: A cat playing piano!",
        "generate video of a cat playing piano",
    ],
)
def test_english(wrapped: str) -> None:
    """The ways to ask for a video are no part of it."""
    assert normalise(wrapped, ON) == "a cat playing piano"


@pytest.mark.parametrize(
    "wrapped",
    [
        "请生成一个猫弹钢琴的视频",
        "请帮我生成一段猫弹钢琴的视频。",
        "制作一个关于猫弹钢琴的视频",
        "生成一段视频:猫弹钢琴",
        "請生成一個貓彈鋼琴的視頻",
        "帮我做一个视频,内容是猫弹钢琴",
        "给我生成一个展示猫弹钢琴的影片",
        "我想生成一个猫弹钢琴的视频",
    ],
)
def test_chinese(wrapped: str) -> None:
    """So in Chinese, before and around the prompt, simplified or traditional."""
    assert normalise(wrapped, ON) == "猫弹钢琴"


@pytest.mark.parametrize(
    "text",
    [
        "make a video of it",
        "create a video of this",
        "a video of a cat plays on a screen",
        "make a clip of what happens",
        "please make a video showing on a screen",
        "make clip of steel",
        "generate a video",
        "a clip of bullets",
        "generate a short video of a cat",
        "create an animation of a cat",
        "a girl makes a video of a cat",
        "make a video showing how to cook",
        "一个女孩在看猫的视频",
        "生成一个女孩看猫的视频",
        "生成一个它的视频",
        "生成视频",
        "一个男人拍摄的视频",
        "生成一个卡通动画",
        "一段猫弹钢琴的视频在播放",
    ],
)
def test_what_stays(text: str) -> None:
    """No full prompt is left, words that say how it shall look, or no request at all: nothing goes."""
    assert normalise(text, ON) == text


def test_a_place_is_no_prompt_but_begins_one() -> None:
    """After `showing` a preposition needs a clause of its own."""
    assert normalise("make a clip showing in a still frame, a stop sign", ON) == "in a still frame, a stop sign"
    assert normalise("make a clip showing in a frame", ON) == "make a clip showing in a frame"


def test_it_can_be_switched_off() -> None:
    """Without the rule the prompt is what was typed."""
    off = PromptRules(wrappers=False)
    assert normalise("generate a video of a cat", off) == "generate a video of a cat"


@given(
    st.lists(st.sampled_from(["generate a video of ", "生成一个", "的视频", "a cat", "猫狗", "showing ", " ", "看"]))
)
def test_unwrapping_ends(parts: list[str]) -> None:
    """However wrappers are nested, unwrapping three times gives what unwrapping twice gave."""
    twice = unwrapped(unwrapped("".join(parts)))
    assert unwrapped(twice) == twice
