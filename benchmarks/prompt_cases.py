"""Cases for `prompt.py`, all seeded: prompts of a small world, surface variants, minimal edits and typing mistakes.

A variant is a pair of two ways to type one prompt, so both must become one; an edit is a pair of two prompts that
differ in one thing that shows, so they must not. None of this uses the code that is measured.
"""
# ruff: noqa: RUF001 - these cases are about look-alike characters

from __future__ import annotations

import itertools
import random
import re
import string
import unicodedata
from collections.abc import Callable, Iterator, Sequence

Pair = tuple[str, str]
Random = random.Random

_ENGLISH = {
    "colour": ["red", "blue", "green", "white", "black", "orange", "gray"],
    "animal": ["cat", "dog", "horse", "panda", "rabbit", "elephant", "penguin"],
    "does": ["chases", "follows", "carries", "watches", "paints"],
    "count": ["one", "two", "three", "five"],
    "material": ["wooden", "metal", "paper", "plastic"],
    "time": ["at sunset", "at sunrise", "at midnight", "at noon"],
    "camera": ["the camera pans left", "the camera pans right", "zoom in", "zoom out", "tilt up", "tilt down"],
    "side": ["on the left", "on the right"],
    "with": ["with people", "without people", "with no people"],
}
_CHINESE = {
    "colour": ["红色", "蓝色", "绿色", "白色", "黑色", "橙色"],
    "animal": ["猫", "狗", "马", "熊猫", "兔子", "大象", "企鹅"],
    "does": ["追逐", "跟随", "背着", "画着"],
    "count": ["一", "两", "三", "五"],
    "material": ["木头", "金属", "纸做", "塑料"],
    "time": ["日落时分", "日出时分", "午夜", "中午"],
    "camera": ["镜头左移", "镜头右移", "推镜头", "拉镜头", "镜头上移", "镜头下移"],
    "side": ["在左边", "在右边"],
    "with": ["有人", "没有人"],
}
_FORM = {
    "en": "{count} {colour} {animal} {does} a {colour2} {animal2} {side} of a {material} theater, "
    "{time}, {with}, {camera}",
    "zh": "{count}只{colour}的{animal}{does}一只{colour2}的{animal2}，"
    "{side}有{material}的椅子，{time}，{with}，{camera}",
}
_WORLDS = {"en": _ENGLISH, "zh": _CHINESE}


def world(count: int, rng: Random) -> list[str]:
    """Return `count` different prompts, half English and half Chinese."""
    return [prompt for language in _WORLDS for prompt in _distinct(language, count // 2, rng)]


def _distinct(language: str, count: int, rng: Random) -> list[str]:
    made: dict[str, None] = {}
    while len(made) < count:
        made.setdefault(_FORM[language].format(**_scene(language, rng)))
    return list(made)


def _scene(language: str, rng: Random) -> dict[str, str]:
    words = _WORLDS[language]
    scene = {slot: rng.choice(choices) for slot, choices in words.items()}
    scene["colour2"], scene["animal2"] = (
        rng.choice([each for each in words[slot] if each != scene[slot]]) for slot in ("colour", "animal")
    )
    return scene


def made_edits(count: int, rng: Random) -> Iterator[tuple[str, Pair]]:
    """Yield `count` minimal edits of made prompts: (kind, pair); every slot of both languages in turn, and swaps."""
    kinds = [(language, slot) for language in _WORLDS for slot in (*_WORLDS[language], "roles")]
    for language, slot in itertools.islice(itertools.cycle(kinds), count):
        scene = _scene(language, rng)
        if slot == "roles":
            other = scene | {"animal": scene["animal2"], "animal2": scene["animal"]}
        else:
            other = scene | {slot: rng.choice([each for each in _WORLDS[language][slot] if each != scene[slot]])}
            if other["animal"] == other["animal2"]:  # a chase of two alike cannot be told from its edit
                continue
        yield f"{slot} ({language})", (_FORM[language].format(**scene), _FORM[language].format(**other))


_SWAPS = {
    "colour": "red/blue green/yellow black/white 红/蓝 黑/白 绿/黄",
    "count": "one/two two/three a/two 一只/两只 一个/三个 一条/两条",
    "side": "left/right 左/右 above/below 上面/下面",
    "camera": "zoom_in/zoom_out pan_left/pan_right tilt_up/tilt_down 推镜头/拉镜头",
    "negation": "with/without is/is_not 有/没有 是/不是",
    "animal": "cat/bat dog/hog bear/boar bird/bull 猫/狗 熊猫/老虎 鸟/鱼",
    "material": "wooden/woolen glass/grass paper/metal 木/铁 玻璃/塑料",
    "time": "night/light sunset/sunrise day/night 日落/日出 夜/日",
    "number": "3/35 10/100 person/people man/men 男/女",
    "preposition": "on/in under/over to/from 里/外",
}


def edits_of(prompt: str) -> Iterator[tuple[str, Pair]]:
    """Yield the minimal edits that the words of `prompt` allow, both ways, and its decimal points, commas and order."""
    for kind, swaps in _SWAPS.items():
        for swap in swaps.split():
            one, other = swap.replace("_", " ").split("/")
            for old, new in ((one, other), (other, one)):
                edited = _swapped(prompt, old, new)
                if edited != prompt:
                    yield kind, (prompt, edited)
    parts = re.fullmatch(r"(.*?\b)(an?|the) (\w+)(.*\b)(an?|the) (\w+)(.*)", prompt)
    if parts and parts[3].lower() != parts[6].lower():
        before, a, one, middle, the, other, after = parts.groups()
        yield "roles", (prompt, f"{before}{a} {other}{middle}{the} {one}{after}")


def _swapped(prompt: str, old: str, new: str) -> str:
    """Replace the first `old`; a Latin one only as a whole word."""
    return re.sub(rf"\b{old}\b", new, prompt, count=1) if old.isascii() else prompt.replace(old, new, 1)


def typo(prompt: str, rng: Random) -> tuple[str, str, str] | None:
    """Return (kind, the word, `prompt` with one slip in that word); None without a word of five letters."""
    places = list(re.finditer(r"(?<![\w'-])[a-z]{5,}(?![\w'-])", prompt))
    if not places:
        return None
    place = rng.choice(places)
    word, i, letter = place[0], rng.randrange(len(place[0]) - 1), rng.choice(string.ascii_lowercase)
    slips = {
        "letter more": word[:i] + letter + word[i:],
        "letter less": word[:i] + word[i + 1 :],
        "letter other": word[:i] + letter + word[i + 1 :],
        "letters swapped": word[:i] + word[i + 1] + word[i] + word[i + 2 :],
    }
    kind = rng.choice(list(slips))
    return kind, word, prompt[: place.start()] + slips[kind] + prompt[place.end() :]


DEMO_SLIPS = {"a red circel": "a red circle", "a yelow star": "a yellow star", "a spining square": "a spinning square"}
"""Slips in the words of the demo's world, and what was meant."""

NAMED: dict[str, str] = {
    "inside a sentence": "a portrait of {} in the rain",
    "first word": "{} walks through the rain",
    "lower case": "a portrait of {} in the rain",
    "headline": "A Portrait of {} in the Rain",
    "all capitals": "A PORTRAIT OF {} IN THE RAIN",
    "unknown, inside a sentence": "a portrait of {} in the rain",
}


def named(kind: str, name: str, rng: Random) -> str:
    """Return a prompt with `name` in it; an unknown name is a known one with another letter in it."""
    if kind.startswith("unknown"):
        i = rng.randrange(1, len(name))
        name = name[:i] + rng.choice(string.ascii_lowercase) + name[i + 1 :]
    cased = {"lower case": name.lower(), "all capitals": name.upper()}
    return NAMED[kind].format(cased.get(kind, name))


def _wide(prompt: str) -> str:
    return "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" and char not in "\"'`-" else char for char in prompt)


def _sprinkled(chars: str) -> Callable[[str, Random], str]:
    def sprinkle(prompt: str, rng: Random) -> str:
        places = sorted(rng.sample(range(len(prompt) + 1), min(3, len(prompt) + 1)), reverse=True)
        for place in places:
            prompt = prompt[:place] + rng.choice(chars) + prompt[place:]
        return prompt

    return sprinkle


_BRITISH = {
    "gray": "grey", "color": "colour", "colorful": "colourful", "theater": "theatre", "center": "centre",
    "harbor": "harbour", "traveling": "travelling", "neighborhood": "neighbourhood", "colors": "colours",
    "airplane": "aeroplane", "tire": "tyre",
    "jewelry": "jewellery", "fiber": "fibre", "realizing": "realising", "organized": "organised", "pajamas": "pyjamas",
}  # fmt: skip


def _british(prompt: str, rng: Random) -> str:
    return re.sub(r"[a-z]+", lambda match: _BRITISH.get(match[0], match[0]), prompt)


def _traditional(prompt: str, rng: Random) -> str:
    import opencc

    return str(opencc.OpenCC("s2t").convert(prompt)) if re.search("[一-鿿]", prompt) else prompt


def _wrapped(english: Sequence[str], chinese: Sequence[str]) -> Callable[[str, Random], str]:
    def wrap(prompt: str, rng: Random) -> str:
        return rng.choice(english if prompt.isascii() else chinese).format(prompt.rstrip(".。!！"))

    return wrap


VARIANTS: dict[str, Callable[[str, Random], str]] = {
    "upper case": lambda prompt, rng: prompt.upper(),
    "title case": lambda prompt, rng: prompt.title(),
    "blanks doubled": lambda prompt, rng: f"  {prompt.replace(' ', '   ')}\n",
    "tabs and newlines": lambda prompt, rng: prompt.replace(" ", rng.choice(["\t", "\n", "\r\n"])),
    "no-break and wide blanks": lambda prompt, rng: prompt.replace(" ", rng.choice("\u00a0\u3000\u2009")),
    "zero-width characters": _sprinkled("\u200b\u2060\ufeff\u200c"),
    "soft hyphens, direction": _sprinkled("\u00ad\u200e\u200f\u202a"),
    "full-width letters": lambda prompt, rng: _wide(prompt),
    "decomposed (NFD)": lambda prompt, rng: unicodedata.normalize("NFD", f"{prompt}, café"),
    "ligatures": lambda prompt, rng: prompt.replace("fi", "ﬁ").replace("fl", "ﬂ").replace("ff", "ﬀ"),
    "curly quotes around": lambda prompt, rng: f"“{prompt}”",
    "a stray quote": lambda prompt, rng: f'"{prompt}',
    "exclamation marks": lambda prompt, rng: f"{prompt.rstrip('.。')}{rng.choice(['!!', '!', '！！'])}",
    "full stop": lambda prompt, rng: f"{prompt.rstrip('.。')}{rng.choice(['.', '。', '...', '…'])}",
    "commas without blank": lambda prompt, rng: re.sub(r", (?=[A-Za-z])", ",", prompt),
    "commas after a blank": lambda prompt, rng: prompt.replace(", ", " , ").replace("，", " ， "),
    "Chinese commas plain": lambda prompt, rng: prompt.replace("，", rng.choice([",", ", "])),
    "commas doubled": lambda prompt, rng: prompt.replace(", ", ",, ").replace("，", "，，"),
    "Chinese list commas": lambda prompt, rng: prompt.replace("，", "、"),
    "blanks beside Latin": lambda prompt, rng: re.sub(r"([一-鿿])([A-Za-z0-9])", r"\1 \2", prompt),
    "other hyphens": lambda prompt, rng: prompt.replace("-", rng.choice("\u2010\u2011")),
    "curly apostrophes": lambda prompt, rng: prompt.replace("'", "’"),
    "a bullet before": lambda prompt, rng: f"- {prompt}",
    "traditional Chinese": _traditional,
    "British spelling": _british,
    "asked politely": _wrapped(
        ["please make a clip showing {}", "Could you please create a video of {}?", "I'd like a video showing {}"],
        ["请生成一个{}的视频", "请帮我制作一段{}的视频。", "给我生成一段视频：{}"],
    ),
    "ordered": _wrapped(
        ["generate a video of {}", "Create a video clip of: {}", "make me a video that shows {}"],
        ["生成一个关于{}的视频", "生成一个视频，内容是{}", "生成{}的影片"],
    ),
}


def variants_of(prompt: str, rng: Random) -> Iterator[tuple[str, Pair]]:
    """Yield (kind, (prompt, another way to type it)) for every kind that changes this prompt."""
    for kind, vary in VARIANTS.items():
        base = f"{prompt}, café" if kind.startswith("decomposed") else prompt
        varied = vary(prompt, rng)
        if varied != base:
            yield kind, (base, varied)
