"""Chinese: punctuation, blanks and traditional characters fold; numbers, measure words and Japanese do not."""
# ruff: noqa: RUF001 - these tests are about look-alike characters

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from serve_app.core import PromptRules
from serve_app.prompt import chinese
from serve_app.prompt.prompt import normalise

ON = PromptRules()


@pytest.mark.parametrize(
    ("typed", "canonical"),
    [
        ("一隻貓在彈鋼琴。", "一只猫在弹钢琴"),
        ("一只猫，一条狗、一匹马；", "一只猫,一条狗,一匹马"),
        ("一台 iPhone 15 手机", "一台iphone 15手机"),
        ("3 只猫", "3只猫"),
        ("３只猫", "3只猫"),
        ("乾淨的後院", "干净的后院"),
        ("著名的乾隆皇帝", "著名的乾隆皇帝"),
        ("猫……", "猫"),
        ("【油画】猫", "[油画]猫"),
        ("猫 狗", "猫 狗"),
    ],
)
def test_chinese_folds(typed: str, canonical: str) -> None:
    """Script, marks and blanks are form; a blank between two Chinese words separates them and stays."""
    assert normalise(typed, ON) == canonical


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("一只猫", "两只猫"),
        ("一只猫", "一条猫"),
        ("3.5米", "35米"),
        ("3。5米", "3.5米"),
        ("左边", "右边"),
        ("没有人", "有人"),
        ("猫追狗", "狗追猫"),
        ("三只", "3只"),
        ("10米", "10厘米"),
        ("推镜头", "拉镜头"),
        ("猫和狗", "猫或狗"),
        ("白天", "晚上"),
    ],
)
def test_meanings_stay_apart(one: str, other: str) -> None:
    """Counts, measure words, negation, order, directions and decimals are never folded."""
    assert normalise(one, ON) != normalise(other, ON)


@pytest.mark.parametrize("text", ["龍が飛ぶ", "東京の猫", "개와 貓"])
def test_japanese_and_korean_keep_their_characters(text: str) -> None:
    """Text with kana or hangul is not Chinese and is not simplified."""
    assert normalise(text, ON) == text


def test_it_can_be_switched_off() -> None:
    """A model that reads traditional Chinese may keep it."""
    assert normalise("一隻貓", PromptRules(traditional_to_simplified=False)) == "一隻貓"


def test_every_character_converts_once() -> None:
    """What OpenCC makes of a character it leaves alone, but for one rare plant, which takes two rounds."""
    twice = []
    for code in (*range(0x3400, 0xA000), *range(0xF900, 0xFB00), *range(0x20000, 0x2A6E0)):
        once = chinese.simplified(chr(code))
        again = chinese.simplified(once)
        assert chinese.simplified(again) == again
        if again != once:
            twice.append(chr(code))
    assert twice == ["薴"]


def test_tables_are_named() -> None:
    """The digest is one of content: 64 hex digits, the same in another process."""
    assert re.fullmatch("[0-9a-f]{64}", chinese.digest())
    code = "from serve_app.prompt import chinese; print(chinese.digest())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert told == chinese.digest()
