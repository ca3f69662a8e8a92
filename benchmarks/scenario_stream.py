"""Streams of labelled requests: a label is one meaning, and a request says it in one of the ways people type it.

Prompts are of the demo model's world of moving shapes, worded here. A variation changes what the README promises
to fold: blanks, case, edges and width of characters, punctuation, traditional Chinese, British spelling, wrappers, one
slip of the fingers, and the fields in which a size or a length is said. None of it uses the code that is measured.
"""
# ruff: noqa: RUF001 - variations are about look-alike characters

from __future__ import annotations

import bisect
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Fields = dict[str, Any]
Random = random.Random

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "large")
MOTIONS = (
    "moving left", "moving right", "rising slowly", "falling slowly", "growing", "shrinking", "spinning", "bouncing",
    "standing still",
)  # fmt: skip
BACKGROUNDS = ("white", "black", "gray", "navy", "sky blue", "sand colored")
TEMPLATES = (
    "our new logo: a {color} {shape} {motion} on a gray background",
    "happy weekend everybody, a {color} {shape} {motion} in the center",
    "the color of the day is {color}, a {shape} {motion}",
)
"""What the platform offers its users; all that a warm-up can know beforehand."""
VARIABLES = {"color": COLORS, "shape": SHAPES, "motion": MOTIONS}
_FREE = (
    "a {size} {color} {shape} {motion} on a {background} background",
    "one {color} {shape}, {size}, {motion}, {background} background",
    "on a {background} background a {size} {color} {shape} is {motion}",
)
_CHINESE = {
    "size": {"small": "小", "large": "大"},
    "color": dict(zip(COLORS, ("红色", "橙色", "黄色", "绿色", "青色", "蓝色", "紫色", "粉色"), strict=True)),
    "shape": dict(zip(SHAPES, ("圆形", "正方形", "三角形", "星形", "心形", "十字形"), strict=True)),
    "motion": dict(
        zip(MOTIONS, ("向左移动", "向右移动", "上升", "下落", "变大", "变小", "旋转", "弹跳", "静止"), strict=True)
    ),
    "background": dict(zip(BACKGROUNDS, ("白色", "黑色", "灰色", "深蓝色", "天蓝色", "沙色"), strict=True)),
}
_CHINESE_FORM = "{background}背景上，一个{size}的{color}{shape}，{motion}"
_TRADITIONAL = str.maketrans("红黄绿蓝圆个动变弹静", "紅黃綠藍圓個動變彈靜")
_BRITISH = {"gray": "grey", "color": "colour", "colored": "coloured", "center": "centre"}
_SLIPS = {
    "background": "backgroud", "triangle": "trianlge", "square": "sqaure", "purple": "purpel", "yellow": "yelllow",
    "spinning": "spinnning", "bouncing": "bouncng", "standing": "standng", "everybody": "everybdy",
}  # fmt: skip
_WRAPPERS = ("please generate a video of ", "create a video of ", "generate a video showing ")


@dataclass(frozen=True, slots=True)
class Request:
    """One request: when it comes (seconds from the stream's beginning), what it means, what is sent."""

    at: float
    label: int
    fields: Fields


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests in the order of their coming, and the first wording of each label."""

    requests: Sequence[Request]
    labels: Sequence[Fields]

    def compressed(self, seconds: float) -> Stream:
        """Return the same stream so that it lasts `seconds`."""
        factor = seconds / self.requests[-1].at
        return Stream([Request(each.at * factor, each.label, each.fields) for each in self.requests], self.labels)


def template_prompts(templates: Sequence[Fields]) -> list[str]:
    """Return every combination of templates in the form of a warm-up, filled in without the code that is measured."""
    return [
        template["prompt"].format(**dict(zip(template["variables"], values, strict=True)))
        for template in templates
        for values in itertools.product(*template["variables"].values())
    ]


def free_prompts(count: int, rng: Random) -> list[str]:
    """Return so many prompts that no template makes, all different; one in eight is Chinese."""
    made: dict[str, None] = {}
    while len(made) < count:
        words = {
            "size": rng.choice(SIZES), "color": rng.choice(COLORS), "shape": rng.choice(SHAPES),
            "motion": rng.choice(MOTIONS), "background": rng.choice(BACKGROUNDS),
        }  # fmt: skip
        if rng.random() < 1 / 8:
            made.setdefault(_CHINESE_FORM.format(**{name: _CHINESE[name][word] for name, word in words.items()}))
        else:
            made.setdefault(rng.choice(_FREE).format(**words))
    return list(made)


def varied(fields: Fields, rng: Random) -> Fields:
    """Return the same meaning typed otherwise: the prompt in one or two ways, now and then its fields too."""
    prompt = fields["prompt"]
    ways = _CHINESE_WAYS if not prompt.isascii() else _WAYS
    for way in rng.sample(ways, rng.choice((1, 1, 2))):
        prompt = way(prompt, rng)
    fields = fields | {"prompt": prompt}
    if rng.random() < 0.3:
        width, height = fields.pop("size").split("x")
        fields |= {"width": int(width), "height": int(height)}
    if rng.random() < 0.3:
        fields["seconds"] = f"{fields.pop('num_frames') / fields['fps']:g}"
    return fields


def _blanks(prompt: str, rng: Random) -> str:
    words = prompt.split(" ")
    place = rng.randrange(1, len(words)) if len(words) > 1 else 0
    blank = rng.choice(("  ", "\u00a0", " \u200b", "\t"))
    return " ".join(words[:place]) + (blank if place else "") + " ".join(words[place:])


def _case(prompt: str, rng: Random) -> str:
    return rng.choice((str.upper, str.title, str.capitalize))(prompt)


def _edges(prompt: str, rng: Random) -> str:
    return rng.choice(("{}.", "{}!", " {} ", "{} ...", "{},")).format(prompt)


def _width(prompt: str, rng: Random) -> str:
    """Type one word in full-width characters, as a Chinese or Japanese keyboard does."""
    words = prompt.split(" ")
    place = rng.randrange(len(words))
    words[place] = "".join(
        chr(ord(char) + 0xFEE0) if char.isascii() and char.isalpha() else char for char in words[place]
    )
    return " ".join(words)


def _commas(prompt: str, rng: Random) -> str:
    return prompt.replace(", ", rng.choice((",", "， ", " , ")))


def _british(prompt: str, rng: Random) -> str:
    return " ".join(_BRITISH.get(word, word) for word in prompt.split(" "))


def _slip(prompt: str, rng: Random) -> str:
    words = prompt.split(" ")
    places = [place for place, word in enumerate(words) if word in _SLIPS]
    if places:
        place = rng.choice(places)
        words[place] = _SLIPS[words[place]]
    return " ".join(words)


def _wrapper(prompt: str, rng: Random) -> str:
    return rng.choice(_WRAPPERS) + prompt if prompt.startswith(("a ", "one ", "the ")) else prompt


def _traditional(prompt: str, rng: Random) -> str:
    return prompt.translate(_TRADITIONAL)


def _latin_commas(prompt: str, rng: Random) -> str:
    return prompt.replace("，", rng.choice((",", ", ", "， ")))


Way = Callable[[str, Random], str]
_WAYS: tuple[Way, ...] = (_blanks, _case, _edges, _width, _commas, _british, _slip, _wrapper)
_CHINESE_WAYS: tuple[Way, ...] = (_traditional, _latin_commas, lambda prompt, rng: prompt + rng.choice("。！ "))


def day(count: int, rng: Random) -> list[float]:
    """Return when `count` requests come in a day of one second: half as many by night, half as many more by day."""
    moments = 1_000
    rates = [1 - 0.5 * math.cos(2 * math.pi * moment / moments) for moment in range(moments)]
    sums = list(itertools.accumulate(rates))
    return sorted((bisect.bisect_left(sums, rng.random() * sums[-1]) + rng.random()) / moments for _ in range(count))
