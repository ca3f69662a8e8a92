"""Wrappers: "please generate a video of ..." asks for what follows it, in English and Chinese.

They go only where what is left is a prompt of its own: "make a video of it" and "a video showing on a screen" are not
wrapped, "一个女孩在看猫的视频" may be a girl who watches videos. Words that say how the video shall look (short,
animated, a film) are part of the prompt and never go. What is not certainly a wrapper stays: that costs a render, the
other mistake shows a wrong video.
"""

from __future__ import annotations

import re

_ENGLISH = re.compile(
    r"""
    (?P<asking> (?:please\ |kindly\ )?
        (?: (?:can|could|would|will)\ you\ (?:please\ |kindly\ )?
          | i\ (?:want|need|would\ like|'d\ like)\ (?:you\ )?(?:to\ )?
          | i'd\ like\ (?:you\ )?(?:to\ )?
          | help\ me\ (?:to\ )?
        )?
        (?: (?:generate|create|make|produce|render|show|give|see|get)\ (?:(?:me|us)\ )? )?
    )
    (?P<article>an?\ |the\ )?
    (?P<noun>video\ clip|video|clip)
    (?P<join>\ of:?\ |\ (?:which|that)\ (?:shows|depicts|features)\ |\ (?:showing|depicting|featuring)\ |:\ ?)
    """,
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_NOT_A_PROMPT = re.compile(
    r"(?a:it|this|that|these|those|them|him|me|us|you|how|what|why|when|where|whether|whatever|up|off|out|and|or)\b",
    re.IGNORECASE,
)
_PLACE = re.compile(
    r"(?a:on|at|to|from|for|by|in|into|with|within|inside|under|over|behind|during|via|through|live|again|only|next|about)\b",
    re.IGNORECASE,
)

_ASKED = (
    "(?:请你?|麻烦你?|帮忙|帮我|给我|为我|我想要?|我要|我希望你?|你?能不能|可以|能){0,4}"
    "(?:请|帮我|给我|为我|来)?(?:生成|制作|创建|创作|做|产生|渲染)(?:一下|出)?"
)
_COUNTED = "(?:一个|一段|一部|个|段)?"  # as videos are counted; 一条 or 一只 counts what is to be seen
_CHINESE_AROUND = re.compile(
    rf"{_ASKED}{_COUNTED}(?:关于|有关|展示|描绘|描述|表现)?(?P<rest>.+?)的(?:视频|影片)(?:吧|吗)?",
    re.DOTALL,
)
_CHINESE_BEFORE = re.compile(
    rf"{_ASKED}{_COUNTED}(?:视频|影片)"
    r"(?:[:,]? ?(?:内容|画面)(?:是|为)?[:,]? ?|[:,] ?|,? ?(?:展示|描绘|表现)的?(?:是)?[:,]? ?)(?P<rest>.+)",
    re.DOTALL,
)
_WATCHED = re.compile(
    "(?:看|播放|刷(?![牙墙碗漆鞋子毛])|录制|(?<!球)拍|剪辑|上传|分享|发布)(?!着|起来|见|上去|打).{0,8}$|制作$",
    re.DOTALL,
)
_CHINESE_NOT_A_PROMPT = re.compile("(?:它|他|她|这|那|此|上述|以下|如何|怎么|怎样|什么)")


def unwrapped(text: str) -> str:
    """Return what `text` asks for without the asking; `text` itself where that is no full prompt."""
    start = _english(text)
    text = text[start:] if start else text
    return text if text.isascii() else _chinese(text)


def _english(text: str) -> int:
    """Return where the prompt begins, after any number of wrappers."""
    start = 0
    while match := _ENGLISH.match(text, start):
        if not _is_wrapper(match) or not _is_full(match, text):
            break
        start = match.end()
    return start


def _is_wrapper(match: re.Match[str]) -> bool:
    """Tell a request from `a video of a cat plays on a screen`, which asks for nothing, and `make clip of steel`."""
    return bool(match["asking"]) and (match["noun"].lower() != "clip" or bool(match["article"]))


def _is_full(match: re.Match[str], text: str) -> bool:
    start = match.end()
    if start == len(text) or _NOT_A_PROMPT.match(text, start):
        return False
    if match["join"].lstrip().startswith(("of", ":")):
        return True
    return not _PLACE.match(text, start) or "," in text[start:]


def _chinese(text: str) -> str:
    """Unwrap once; what is wrapped twice stays, so that unwrapping never has to be repeated."""
    rest = _chinese_rest(text)
    return text if rest is None or _chinese_rest(rest) is not None else rest


def _chinese_rest(text: str) -> str | None:
    around = _CHINESE_AROUND.fullmatch(text)
    if around and not _WATCHED.search(around["rest"]) and _is_chinese_prompt(around["rest"]):
        return around["rest"]
    before = _CHINESE_BEFORE.fullmatch(text)
    return before["rest"] if before and _is_chinese_prompt(before["rest"]) else None


def _is_chinese_prompt(rest: str) -> bool:
    return len(rest) > 1 and not _CHINESE_NOT_A_PROMPT.match(rest)
