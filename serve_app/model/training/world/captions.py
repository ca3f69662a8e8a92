"""What people might type for a scene, in English and Chinese.

A caption is a template filled with synonyms; what a scene leaves open is left out of the sentence. Some templates are
held out: training never sees them and the judge asks in them. Captions are raw, as typed: whoever trains or asks
brings them into the server's normal form first, because that is all the model ever sees.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from serve_app.model.training.world.world import Scene

LANGUAGES = ("en", "zh")

_T = TypeVar("_T")
_Words = Mapping[str, Sequence[str]]

_SHAPES: _Words = {
    "circle": ("circle", "disc", "ball", "round shape"),
    "square": ("square", "box", "block", "square shape"),
    "triangle": ("triangle", "triangular shape"),
    "star": ("star", "five-pointed star", "star shape"),
    "heart": ("heart", "heart shape", "love heart"),
    "cross": ("cross", "plus sign", "plus", "cross shape"),
}
_COLORS: _Words = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "tangerine", "bright orange"),
    "yellow": ("yellow", "lemon yellow", "bright yellow"),
    "green": ("green", "emerald", "emerald green"),
    "cyan": ("cyan", "teal", "turquoise", "aqua"),
    "blue": ("blue", "cobalt", "royal blue"),
    "purple": ("purple", "violet", "deep purple"),
    "pink": ("pink", "rose", "hot pink"),
}
_SIZES: _Words = {"small": ("small", "little", "tiny", "mini"), "large": ("large", "big", "huge", "giant")}
_BACKGROUNDS: _Words = {
    "white": ("white", "plain white", "pure white"),
    "black": ("black", "pitch black", "pure black"),
    "gray": ("gray", "grey", "neutral gray"),
    "navy": ("navy", "navy blue", "dark blue", "midnight blue"),
    "sky": ("sky", "sky blue", "light blue", "pale blue"),
    "sand": ("sand", "sandy", "beige", "sand colored"),
}
_MOTIONS: Mapping[str, Sequence[tuple[str, str]]] = {
    "left": (
        ("moves left", "moving left"),
        ("moves to the left", "moving to the left"),
        ("slides left", "sliding left"),
        ("glides to the left", "gliding to the left"),
        ("drifts leftward", "drifting leftward"),
        ("goes left", "going left"),
        ("travels from right to left", "traveling from right to left"),
    ),
    "right": (
        ("moves right", "moving right"),
        ("moves to the right", "moving to the right"),
        ("slides right", "sliding right"),
        ("glides to the right", "gliding to the right"),
        ("drifts rightward", "drifting rightward"),
        ("goes right", "going right"),
        ("travels from left to right", "traveling from left to right"),
    ),
    "up": (
        ("moves up", "moving up"),
        ("moves upward", "moving upward"),
        ("rises", "rising"),
        ("floats up", "floating up"),
        ("goes up", "going up"),
        ("climbs to the top", "climbing to the top"),
        ("travels from bottom to top", "traveling from bottom to top"),
    ),
    "down": (
        ("moves down", "moving down"),
        ("moves downward", "moving downward"),
        ("falls", "falling"),
        ("sinks", "sinking"),
        ("goes down", "going down"),
        ("drops to the bottom", "dropping to the bottom"),
        ("travels from top to bottom", "traveling from top to bottom"),
    ),
    "grow": (
        ("grows", "growing"),
        ("gets bigger", "getting bigger"),
        ("becomes larger", "becoming larger"),
        ("expands", "expanding"),
        ("increases in size", "increasing in size"),
        ("swells", "swelling"),
    ),
    "shrink": (
        ("shrinks", "shrinking"),
        ("gets smaller", "getting smaller"),
        ("becomes smaller", "becoming smaller"),
        ("contracts", "contracting"),
        ("decreases in size", "decreasing in size"),
        ("dwindles", "dwindling"),
    ),
    "rotate": (
        ("rotates", "rotating"),
        ("spins", "spinning"),
        ("turns around", "turning around"),
        ("spins in place", "spinning in place"),
        ("rotates clockwise", "rotating clockwise"),
        ("whirls", "whirling"),
    ),
    "bounce": (
        ("bounces", "bouncing"),
        ("hops", "hopping"),
        ("jumps up and down", "jumping up and down"),
        ("bounces up and down", "bouncing up and down"),
        ("jumps", "jumping"),
        ("bobs up and down", "bobbing up and down"),
    ),
    "still": (
        ("stays still", "staying still"),
        ("stands still", "standing still"),
        ("does not move", "not moving"),
        ("remains motionless", "remaining motionless"),
        ("rests", "resting"),
        ("stays in place", "staying in place"),
    ),
}
_SUBJECTS = (
    "{a} {size} {color} {shape}",
    "{a} {size} {color} {shape}",
    "{a} {color} {size} {shape}",
    "one {size} {color} {shape}",
    "the {size} {color} {shape}",
    "{a} {size} {shape} in {color}",
    "{a} {size}, {color} {shape}",
    "{a} {color} {shape} of {size} size",
)
_PLACES = (
    "on {a} {background} background",
    "on {a} {background} background",
    "against {a} {background} backdrop",
    "in front of {a} {background} wall",
    "over {a} {background} background",
    "with {a} {background} background",
    "on {background}",
)
_GROUNDS = ("{background} background", "{background} backdrop", "{a} {background} background")

_SENTENCES: Mapping[str, Sequence[str]] = {
    "en": (
        "{subject} {doing} {place}",
        "{subject} {doing} {place}",
        "{subject} {does} {place}",
        "{subject} {place} {doing}",
        "{place}, {subject} {does}",
        "{subject} {is_doing} {place}",
        "{subject}, {doing}, {ground}",
        "{ground}, {subject}, {doing}",
        "{subject} {place}, {doing}",
        "{doing} {subject} {place}",
        "{subject} {that} {place}",
        "{subject} {place}. {it}.",
        "{subject}; {ground}; {doing}",
        "there is {subject} {place}, {it}",
        "{subject} {place} as {it}",
        "we see {subject} {doing} {place}",
        "{it}: {subject} {place}",
        "{tags}",
        "{tags}",
    ),
    "zh": (
        "{subject}在{ground}上{doing}",
        "{subject}在{ground}前{doing}",
        "{ground}上,{subject}{doing}",
        "{ground},{subject}{doing}",
        "{subject}{doing},{ground}",
        "{ground}上有{subject}在{doing}",
        "{ground},{doing}的{subject}",
        "{doing}的{subject},{ground}",
        "{subject}正在{doing},{ground}",
        "{subject},{ground},{doing}",
        "在{ground}里{subject}{doing}",
        "{tags}",
        "{tags}",
    ),
}
_HELD_OUT: Mapping[str, Sequence[str]] = {
    "en": (
        "{ground}: here {subject} {does}",
        "imagine {subject} {doing} {place}",
        "{place} there is {subject}, and {it}",
        "{doing} {place}: {subject}",
        "look at {subject} {that}, {ground}",
        "{place}, we can see how {subject} {does}",
    ),
    "zh": (
        "请看,{subject}{doing},{ground}",
        "{ground}中{subject}一直{doing}",
        "有{subject},它{doing},{ground}",
        "{doing},{subject},在{ground}",
        "{subject}不停地{doing},后面是{ground}",
    ),
}

_MANNERS: Mapping[str, Sequence[str]] = {  # most motions are told without one
    "en": (*("",) * 18, "slowly", "quickly", "gently", "smoothly", "steadily", "constantly"),
    "zh": (*("",) * 18, "慢慢", "快速", "不断", "一直", "缓缓", "持续"),
}

_ZH: Mapping[str, _Words] = {
    "shape": {
        "circle": ("圆形", "圆", "圆球", "圆盘"),
        "square": ("正方形", "方块", "方形"),
        "triangle": ("三角形", "三角"),
        "star": ("五角星", "星星", "星形"),
        "heart": ("爱心", "心形", "心"),
        "cross": ("十字", "十字形", "加号"),
    },
    "color": {
        "red": ("红色", "大红色", "鲜红色"),
        "orange": ("橙色", "橘色", "橘黄色"),
        "yellow": ("黄色", "明黄色", "柠檬黄"),
        "green": ("绿色", "翠绿色"),
        "cyan": ("青色", "青绿色"),
        "blue": ("蓝色", "宝蓝色"),
        "purple": ("紫色", "深紫色"),
        "pink": ("粉色", "粉红色"),
    },
    "size": {"small": ("小", "小小的", "迷你"), "large": ("大", "大大的", "巨大的")},
    "background": {
        "white": ("白色背景", "白底", "纯白背景"),
        "black": ("黑色背景", "黑底", "纯黑背景"),
        "gray": ("灰色背景", "灰底"),
        "navy": ("深蓝色背景", "藏青色背景", "海军蓝背景"),
        "sky": ("天蓝色背景", "天空背景", "浅蓝色背景"),
        "sand": ("沙色背景", "沙滩背景", "米色背景"),
    },
    "motion": {
        "left": ("向左移动", "往左滑动", "从右向左移动", "左移", "往左走"),
        "right": ("向右移动", "往右滑动", "从左向右移动", "右移", "往右走"),
        "up": ("向上移动", "往上升", "上升", "从下往上移动", "上移"),
        "down": ("向下移动", "往下掉", "下降", "从上往下移动", "下落"),
        "grow": ("变大", "逐渐变大", "放大", "越来越大", "膨胀"),
        "shrink": ("变小", "逐渐变小", "缩小", "越来越小", "收缩"),
        "rotate": ("旋转", "转动", "原地旋转", "顺时针旋转", "打转"),
        "bounce": ("弹跳", "跳动", "上下跳", "蹦跳", "跳来跳去"),
        "still": ("静止", "静止不动", "保持不动", "停在原地", "一动不动"),
    },
}
_ZH_SUBJECTS = (
    "一个{size}{color}{shape}",
    "一个{color}{size}{shape}",
    "{size}{color}{shape}",
    "一个{color}的{size}{shape}",
)


def caption(scene: Scene, rng: np.random.Generator, language: str = "en", *, held_out: bool = False) -> str:
    """Describe what `scene` does not leave open, in a template from one side of the split; language "en" or "zh"."""
    pick = _Picker(rng)
    slots = _chinese(scene, pick) if language == "zh" else _english(scene, pick)
    template = pick((_HELD_OUT if held_out else _SENTENCES)[language])
    tags = [slots[tag] for tag in ("size", "color", "shape", "doing", "ground") if slots[tag]]
    slots["tags"] = ", ".join(tags[i] for i in rng.permutation(len(tags)))
    return _tidy(template.format(**slots))


def templates(language: str, *, held_out: bool = False) -> Sequence[str]:
    """Return the templates on one side of the split; a frequent one stands there twice."""
    return (_HELD_OUT if held_out else _SENTENCES)[language]


class _Picker:
    """Draws one of several phrases."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def __call__(self, choices: Sequence[_T]) -> _T:
        return choices[int(self._rng.integers(len(choices)))]

    def word(self, words: _Words, value: str | None) -> str:
        return "" if value is None else self(words[value])


def _english(scene: Scene, pick: _Picker) -> dict[str, str]:
    size, color = pick.word(_SIZES, scene.size), pick.word(_COLORS, scene.color)
    shape = pick.word(_SHAPES, scene.shape) or pick(("shape", "object", "thing"))
    background = pick.word(_BACKGROUNDS, scene.background)
    manner = pick(_MANNERS["en"])
    does, doing = (f"{manner} {verb}".strip() for verb in pick(_MOTIONS[scene.motion])) if scene.motion else ("", "")
    subjects = _SUBJECTS[: 5 if not (size and color) else None]
    subject = pick(subjects).format(a="a", size=size, color=color, shape=shape)
    return {
        "size": size,
        "color": color,
        "shape": shape,
        "does": does,
        "doing": doing,
        "subject": _articles(subject),
        "place": _articles(pick(_PLACES).format(a="a", background=background)) if background else "",
        "ground": _articles(pick(_GROUNDS).format(a="a", background=background)) if background else "",
        "is_doing": f"is {doing}" if doing else "",
        "that": f"{pick(('that', 'which'))} {does}" if does else "",
        "it": f"it {does}" if does else "it is there",
    }


def _chinese(scene: Scene, pick: _Picker) -> dict[str, str]:
    said = {name: pick.word(words, getattr(scene, name)) for name, words in _ZH.items()}
    said["shape"] = said["shape"] or pick(("图形", "东西"))
    subject = pick(_ZH_SUBJECTS).format(**said)
    doing = pick(_MANNERS["zh"]) + said["motion"] if said["motion"] else "出现"
    return {**said, "subject": subject, "ground": said["background"] or "画面", "doing": doing}


def _articles(phrase: str) -> str:
    """QueuedRender `a` into `an` where the next word wants it."""
    return re.sub(r"\ba(?=\s+[aeio])", "an", re.sub(r"\s+", " ", phrase))


def _tidy(sentence: str) -> str:
    """Take away what empty slots left behind: doubled blanks and stops, blanks before stops, stops at the ends."""
    sentence = re.sub(r"\s+", " ", sentence)
    sentence = re.sub(r"\s+([,.;:])", r"\1", sentence)
    sentence = re.sub(r"([,.;:])(?:\s*[,.;:])+", r"\1", sentence)
    return sentence.strip(" ,.;:")
