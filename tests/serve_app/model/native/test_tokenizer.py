from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.model.native.tokenizer import BOS, EOS, VOCAB_SIZE, count_tokens, tokenize

any_text = st.text(st.characters())  # lone surrogates included


@settings(deadline=None)
@given(any_text)
def test_any_text_is_valid_input(text: str) -> None:
    """Whatever JSON can carry becomes tokens of the vocabulary between BOS and EOS."""
    tokens = tokenize(text)
    assert (tokens[0], tokens[-1]) == (BOS, EOS)
    assert all(0 <= token < 256 < VOCAB_SIZE for token in tokens[1:-1])


@settings(deadline=None)
@given(any_text)
def test_the_count_is_the_number_of_tokens(text: str) -> None:
    """A router's count and the encoder's sequence agree."""
    assert count_tokens(text) == len(tokenize(text))


@settings(deadline=None)
@given(any_text, any_text)
def test_different_texts_have_different_tokens(one: str, other: str) -> None:
    """No two texts look alike to the model."""
    assert (tokenize(one) == tokenize(other)) == (one == other)


def test_known_tokens() -> None:
    """Tokens are UTF-8 bytes: one for a letter of ASCII, two for a letter with an umlaut."""
    assert tokenize("aü") == [BOS, 97, 0xC3, 0xBC, EOS]
