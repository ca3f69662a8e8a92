"""Which prompts become one, which stay two, and what does it cost to tell?

    python benchmarks/prompt.py [--prompts FILE]

FILE is a list of prompts, one a line, English or Chinese; without it the program makes 800 of its own. From each it
makes surface variants (which must become one with it), minimal edits (which must not) and typing mistakes, all from a
fixed seed; 1,200 edits of made prompts are always among them. The table shows the share of pairs that became one. Wrong
merges are counted among all edits and between all variants of prompts that differ in a letter or digit. For names, the
43,000 of some eighty countries in Faker's lists (2,000 with --quick), it shows the share that typo repair changed. The
repair must mend two thirds of the slips that it mended before it knew names (49 % of those it is given here).

Times are CPU time of this process, because the machine may be busy with other work. Texts of 100 kB are timed three
times; where NFKC itself makes a text longer (one sign of Arabic is 18 letters), the time is per 100 kB of the result.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from form import Goal, Result, Row, main
from prompt_cases import DEMO_SLIPS, NAMED, edits_of, made_edits, named, typo, variants_of, world

from serve_app.core import PromptRules
from serve_app.prompt import names
from serve_app.prompt.prompt import Normaliser

SEED = 2026
FORMER = 0.49
"""The share of these slips that was repaired before names were known, and capitals read."""

FOLDING = PromptRules(traditional_to_simplified=False, spelling=False, wrappers=False, typos=False)
HOSTILE = [
    "a cat ", "é!", ". ,", "\"'", "a\u200b", "\u0301\u0323", "猫。", ".   .", "'a ", '"a" ', "— ", "- ", "1½", "貓",
    "10²", "看", "generate a video of ", "生成一个", "的视频", "xqzzy ", "the cat xqzzy ", "a'b'", "\U0001f469\u200d",
    "1,", "ŉ", "ﷺ", "A", "e\u0301",
]  # fmt: skip


def measure(quick: bool, file: Path | None) -> Result:
    rng = random.Random(SEED)
    prompts = _read(file) if file else world(200 if quick else 800, rng)
    normaliser = Normaliser(PromptRules())
    form = partial(_form, normaliser)
    loading = _milliseconds(lambda: [normaliser.trace(text) for text in ("a cat", "猫", "an xqzzy thing")])
    rows, merges = _variants(prompts, form, rng)
    edit_rows, wrong_edits, edits = _edits(prompts, form, rng)
    typo_rows, wrong_repairs = _typos(prompts, normaliser, rng)
    name_rows, names_changed, names_tried = _names(normaliser, rng, quick)
    demo = sum(_form(normaliser, typed) == meant for typed, meant in DEMO_SLIPS.items())
    repaired = sum(int(row["pairs"]) * float(row["became one"]) for row in typo_rows)
    corrected = sum(bool(normaliser.trace(prompt).corrected) for prompt in prompts)
    rate = _rate(prompts, Normaliser(FOLDING), quick)
    everything = _rate(prompts, normaliser, quick)
    p99 = _p99(prompts, normaliser, rng)
    slowest = max(_per_100_kb(text, normaliser) for text in _long(rng))
    return Result(
        [*rows, *edit_rows, *typo_rows, *name_rows],
        [
            Goal.exactly("wrong merges between prompts", merges, 0),
            Goal.exactly("wrong merges of minimal edits", wrong_edits, 0),
            Goal.at_least("minimal edits tried", edits, 1_000),
            Goal.exactly("unedited prompts corrected", corrected, 0),
            Goal.at_least("names tried", names_tried, 2_000 if quick else 5_000),
            Goal.exactly("names changed", names_changed, 0),
            Goal.at_least("typos repaired", repaired / sum(int(row["pairs"]) for row in typo_rows), FORMER * 2 / 3),
            Goal.exactly("slips in the demo's words repaired", demo, len(DEMO_SLIPS)),
            Goal.at_least("folding, prompts/s on one core", rate, 20_000),
            Goal.at_most("500 characters, everything on, p99 ms", p99, 1.0),
            Goal.at_most("100 kB of anything, slowest ms", slowest, 50.0),
        ],
        {
            "prompts": len(prompts),
            "everything on, prompts/s on one core": everything,
            "typos read as another word": wrong_repairs,
            "loading all tables, ms": loading,
        },
    )


def _form(normaliser: Normaliser, text: str) -> str:
    return normaliser.trace(text).text


def _read(file: Path) -> list[str]:
    return list(dict.fromkeys(line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()))


def _identity(prompt: str) -> str:
    """Return the letters and digits of a prompt: prompts that have others are different."""
    return re.sub(r"[\W_]+", "", prompt.casefold())


def _variants(prompts: Sequence[str], form: Callable[[str], str], rng: random.Random) -> tuple[list[Row], int]:
    found: dict[str, list[bool]] = defaultdict(list)
    origins: dict[str, set[str]] = defaultdict(set)
    for prompt in prompts:
        origins[form(prompt)].add(_identity(prompt))
        for kind, (base, varied) in variants_of(prompt, rng):
            canonical = form(varied)
            found[kind].append(canonical == form(base))
            origins[canonical].add(_identity(base))
    return _rows("variant", found), sum(len(identities) - 1 for identities in origins.values())


def _edits(prompts: Sequence[str], form: Callable[[str], str], rng: random.Random) -> tuple[list[Row], int, int]:
    found: dict[str, list[bool]] = defaultdict(list)
    pairs = [edit for prompt in prompts for edit in edits_of(prompt)]
    for kind, (one, other) in (*pairs, *made_edits(1_200, rng)):
        found[kind.partition(" ")[0]].append(form(one) == form(other))
    merged = [each for kind in found.values() for each in kind]
    return _rows("minimal edit", found), sum(merged), len(merged)


def _typos(prompts: Sequence[str], normaliser: Normaliser, rng: random.Random) -> tuple[list[Row], int]:
    found: dict[str, list[bool]] = defaultdict(list)
    wrong = 0
    for prompt in prompts:
        made = typo(prompt, rng)
        if made is None or made[2] == prompt:
            continue
        result = normaliser.trace(made[2])
        repaired = result.text == _form(normaliser, prompt)
        wrong += bool(result.corrected) and not repaired
        found[made[0]].append(repaired)
    return _rows("typo", found), wrong


def _names(normaliser: Normaliser, rng: random.Random, quick: bool) -> tuple[list[Row], int, int]:
    found: dict[str, list[bool]] = defaultdict(list)
    people = sorted(names.listed())
    for name in rng.sample(people, 2_000) if quick else people:
        for kind in NAMED:
            found[kind].append(bool(normaliser.trace(named(kind, name, rng)).corrected))
    changed = sum(sum(each) for each in found.values())
    return _rows("name", found), changed, len(found["first word"])


def _rows(part: str, found: dict[str, list[bool]]) -> list[Row]:
    return [
        {"part": part, "kind": kind, "pairs": len(merged), "became one": sum(merged) / len(merged)}
        for kind, merged in sorted(found.items())
    ]


def _rate(prompts: Sequence[str], normaliser: Normaliser, quick: bool) -> float:
    """Return prompts per second of CPU time: the best of several rounds over all prompts."""
    rounds = [_milliseconds(lambda: [normaliser.trace(prompt) for prompt in prompts]) for _ in range(3 if quick else 9)]
    return len(prompts) / min(rounds) * 1_000


def _p99(prompts: Sequence[str], normaliser: Normaliser, rng: random.Random) -> float:
    """Return the 99th percentile over 2,000 prompts of 500 characters, a typing mistake in each English one."""
    times = []
    for _ in range(2_000):
        first = rng.choice(prompts)
        made, alike = typo(first, rng), [each for each in prompts if each.isascii() == first.isascii()]
        text = made[2] if made else first
        while len(text) < 500:
            text += f", {rng.choice(alike)}"
        times.append(_milliseconds(partial(normaliser.trace, text[:500])))
    return sorted(times)[int(len(times) * 0.99)]


def _per_100_kb(text: str, normaliser: Normaliser) -> float:
    """Return milliseconds per 100 kB of what went in or, where that is more, came out."""
    best = min(_milliseconds(lambda: normaliser.trace(text)) for _ in range(3))
    return best / max(1, len(_form(normaliser, text).encode()) / 100_000)


def _long(rng: random.Random) -> Iterable[str]:
    """Yield texts of 100 kB in UTF-8: hostile repetitions, noise of all of Unicode, ASCII, words."""
    for unit in HOSTILE:
        yield "x" + unit * (100_000 // len(unit.encode()))
    pages = [(32, 0x300), (0x300, 0x3000), (0x3000, 0xD800), (0xE000, 0x20000)]
    yield "".join(chr(rng.randrange(*rng.choice(pages))) for _ in range(36_000))
    yield "".join(chr(rng.randrange(32, 127)) for _ in range(100_000))
    yield " ".join("".join(rng.choices("abcdefghijklmno", k=6)) for _ in range(14_000))


def _milliseconds(call: Callable[[], Any]) -> float:
    began = time.process_time()
    call()
    return (time.process_time() - began) * 1_000


def draw(axes: Any, result: Result) -> None:
    rows = [row for row in result.rows if row["part"] in ("variant", "typo")]
    colours = {"variant": "tab:blue", "typo": "tab:orange"}
    axes.barh(
        [str(row["kind"]) for row in rows],
        [float(row["became one"]) for row in rows],
        color=[colours[str(row["part"])] for row in rows],
    )
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=6)
    axes.set_xlabel("share that became one prompt (minimal edits: none may)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--prompts", type=Path)
    own, others = parser.parse_known_args()
    sys.exit(main(__doc__ or "", lambda quick: measure(quick, own.prompts), draw, others))
