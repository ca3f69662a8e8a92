"""Prompts on their way to UMT5: cleaned as the pipeline cleans them, counted as its tokenizer counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from serve_app.model.wan.tokenizer import WanTokenizer, clean


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
@example("  a &amp;amp; b\u3000c\n")
@example("schÃ¶n â€œquotedâ€\x9d ﬁn")
@example("</s> <unk> &lt;pad&gt;")
def test_prompts_are_cleaned_as_the_pipeline_does(prompt: str) -> None:
    """For any text the result is diffusers' `prompt_clean`."""
    assert clean(prompt) == prompt_clean(prompt)


@pytest.mark.parametrize("prompt", ["", "a cat", "Paris &amp; Rome", "一只猫", "</s> a <pad>", "\u00e9\u0301 ﬁ"])
def test_counts_are_the_tokenizers(wan_folder: Callable[..., Path], prompt: str) -> None:
    """A router without torch counts what transformers' tokenizer gives, the end's token included."""
    folder = wan_folder() / "tokenizer"
    expected = AutoTokenizer.from_pretrained(folder)(prompt_clean(prompt)).input_ids
    assert WanTokenizer(folder / "tokenizer.json").count_tokens(prompt) == len(expected)


def test_the_identity_names_the_file_and_the_library(wan_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Another vocabulary, or another version of what cleans prompts, is another text encoder."""
    original = wan_folder() / "tokenizer" / "tokenizer.json"
    other = tmp_path / "tokenizer.json"
    other.write_bytes(original.read_bytes() + b"\n")
    assert WanTokenizer(original).identity != WanTokenizer(other).identity
    assert WanTokenizer(original).identity[1].startswith("ftfy ")
