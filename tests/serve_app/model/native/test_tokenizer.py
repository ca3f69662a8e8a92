"""The byte-level BPE: any text is valid, nothing is lost, specials cannot be typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.errors import Unprocessable
from serve_app.model.native import native
from serve_app.model.native.config import DEMO
from serve_app.model.native.native import NativeFamily
from serve_app.model.native.tokenizer import FILE, Tokenizer, train
from serve_app.model.native.weights import SeededWeights

TOKENIZER = Tokenizer(Path(native.__file__).parent / "demo" / FILE)

any_text = st.text(st.characters())  # lone surrogates included
well_formed = st.text(st.characters(exclude_categories=["Cs"]))


def decoded(tokens: list[int]) -> str:
    text: str = TOKENIZER._engine.decode(tokens[1:-1], skip_special_tokens=False)
    return text


@settings(deadline=None)
@given(any_text)
def test_any_text_is_valid_input(text: str) -> None:
    """Whatever JSON can carry becomes tokens of the vocabulary between BOS and EOS, neither of them inside."""
    tokens = TOKENIZER.tokenize(text)
    assert (tokens[0], tokens[-1]) == (TOKENIZER.bos, TOKENIZER.eos)
    assert all(0 <= token < TOKENIZER.vocab_size for token in tokens)
    assert not {TOKENIZER.bos, TOKENIZER.eos} & set(tokens[1:-1])


@settings(deadline=None)
@given(any_text)
def test_the_count_is_the_number_of_tokens(text: str) -> None:
    """A router's count and the encoder's sequence agree."""
    assert TOKENIZER.count_tokens(text) == len(TOKENIZER.tokenize(text))


@settings(deadline=None)
@given(well_formed)
def test_nothing_is_lost(text: str) -> None:
    """Tokens decode to the very text, so no two texts look alike to the model."""
    assert decoded(TOKENIZER.tokenize(text)) == text


@pytest.mark.parametrize("text", ["\x00", "  a  b ", "a\nb\r\n", "ﬁ é e\u0301", "👩‍🚀", "红色的星", "שלום", "\u202eab"])
def test_odd_texts_come_back_as_they_were(text: str) -> None:
    """Blanks, control characters, ligatures, combining marks, emoji and all scripts survive unchanged."""
    assert decoded(TOKENIZER.tokenize(text)) == text


@pytest.mark.parametrize("special", ["<|startoftext|>", "<|endoftext|>"])
def test_a_typed_special_is_text(special: str) -> None:
    """Nobody ends a prompt by writing the name of a special token."""
    tokens = TOKENIZER.tokenize(f"a {special} b")
    assert tokens.count(TOKENIZER.eos) == tokens.count(TOKENIZER.bos) == 1
    assert decoded(tokens) == f"a {special} b"


def test_a_lone_surrogate_is_the_replacement_character() -> None:
    """What is no text reads as U+FFFD instead of failing."""
    for text in ("a\ud800b", "a\udfffb"):
        assert TOKENIZER.tokenize(text) == TOKENIZER.tokenize("a\ufffdb")
    assert TOKENIZER.tokenize("a\udc00\ud800") == TOKENIZER.tokenize("a\ufffd\ufffd")


def test_the_worlds_words_are_few_tokens() -> None:
    """The demo's vocabulary fits its captions: a word is about a token, and foreign text is bytes at worst."""
    assert TOKENIZER.vocab_size == DEMO.text_encoder.vocab_size
    assert TOKENIZER.count_tokens("a small red circle moving left on a white background") <= 14
    assert TOKENIZER.count_tokens("ሰላም") <= 2 + len("ሰላም".encode())


def test_the_specials_are_where_the_encoder_expects_them() -> None:
    """Different ids within the vocabulary, and the file has an identity of its own."""
    assert TOKENIZER.bos != TOKENIZER.eos
    assert len(TOKENIZER.identity) == 64


def test_an_over_long_prompt_is_refused_not_cut() -> None:
    """The encoder takes as many tokens as its limit and raises Unprocessable on `prompt` for one more."""
    limit = DEMO.text_encoder.max_tokens
    encoder = NativeFamily(DEMO, SeededWeights(2), TOKENIZER).load_text_encoder("cpu")
    fits = "\x00" * (limit - 2)  # a byte that no merge has
    assert len(encoder.encode([fits])[0]) == limit
    with pytest.raises(Unprocessable, match=f"at most {limit}") as caught:
        encoder.encode([fits + "\x00"])
    assert caught.value.param == "prompt"


def test_training_is_deterministic_and_keeps_han_apart(tmp_path: Path) -> None:
    """The same texts give the same file; Chinese is split before merging, English words become tokens."""
    texts = ["a red star", "红色五角星"] * 50
    learnt = train(texts, 300)
    assert learnt == train(texts, 300)
    path = tmp_path / FILE
    path.write_text(learnt, "utf-8")
    tokenizer = Tokenizer(path)
    assert tokenizer.vocab_size <= 300
    assert tokenizer.count_tokens("a red star") == 2 + 3
    assert tokenizer.count_tokens("红色五角星") == 2 + 5


def test_a_file_without_the_specials_is_refused(tmp_path: Path) -> None:
    """A tokenizer of another kind fails with its path, not with a wrong id."""
    path = tmp_path / FILE
    path.write_text(train(["a"], 260).replace("<|startoftext|>", "<s>"), "utf-8")
    with pytest.raises(ValueError, match="startoftext"):
        Tokenizer(path).tokenize("a")
