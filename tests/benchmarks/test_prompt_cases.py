"""The cases of `benchmarks/prompt.py`: the same for the same seed, of many kinds, and what their labels say."""

from __future__ import annotations

import random
import re

from benchmarks import prompt_cases


def test_cases_are_seeded() -> None:
    """The same seed gives the same prompts, variants, edits and slips."""

    def everything(seed: int) -> list[object]:
        rng = random.Random(seed)
        prompts = prompt_cases.world(20, rng)
        return [
            prompts,
            [list(prompt_cases.variants_of(prompt, rng)) for prompt in prompts],
            [list(prompt_cases.edits_of(prompt)) for prompt in prompts],
            list(prompt_cases.made_edits(60, rng)),
            [prompt_cases.typo(prompt, rng) for prompt in prompts],
        ]

    assert everything(1) == everything(1) != everything(2)


def test_there_are_many_kinds_in_both_languages() -> None:
    """At least fifteen kinds of variants apply to English prompts and to Chinese ones."""
    english, chinese = prompt_cases.world(2, random.Random(3))
    for prompt in (english, chinese):
        kinds = {kind for kind, _ in prompt_cases.variants_of(prompt, random.Random(3))}
        assert len(kinds) >= 15


def test_edits_differ_in_letters() -> None:
    """Every edit, of made prompts and of given ones, changes a letter or a digit, so none is a variant."""

    def letters(text: str) -> str:
        return re.sub(r"[\W_]+", "", text.casefold())

    rng = random.Random(4)
    edits = [
        *prompt_cases.made_edits(400, rng),
        *(e for p in prompt_cases.world(40, rng) for e in prompt_cases.edits_of(p)),
    ]
    assert len(edits) > 600
    assert all(letters(one) != letters(other) for _, (one, other) in edits)
