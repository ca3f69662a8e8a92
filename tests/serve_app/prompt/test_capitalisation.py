"""What the writing says: which words of a prompt, as it was typed, are names."""

from __future__ import annotations

import pytest

from serve_app.prompt.capitalisation import named_in


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a portrait of Xqab in the rain", {"xqab"}),
        ("Xqab walks in the rain", set()),
        ("rain falls. Xqab walks", set()),
        ("rain falls\nXqab walks", set()),
        ("Mr. Xqab walks", {"xqab"}),
        ("the house of J. Xqab", {"j", "xqab"}),
        ("a dog called xqab runs", {"xqab"}),
        ("a dog called XQAB runs", {"xqab"}),
        ("The Hungry Cat Plays With Xqab", set()),
        ("THE HUNGRY CAT PLAYS WITH XQAB", set()),
        ("The Portrait of Xqab Smiling", set()),
        ("a xqab and Xqab", set()),
        ("Portrait of Xqab", {"xqab"}),
        ("a \uff38qab runs", {"xqab"}),
        ("", set()),
    ],
)
def test_named_in(text: str, named: set[str]) -> None:
    """A capital inside a sentence names, unless all words have one, or the word also stands without."""
    assert named_in(text) == named


def test_only_the_beginning_of_a_long_prompt_is_read() -> None:
    """Time stays bounded: what stands beyond 20,000 characters is not read for names."""
    assert named_in("a " * 20_000 + "Xqab") == frozenset()
