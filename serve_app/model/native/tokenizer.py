"""The demo's tokenizer: UTF-8 bytes between BOS and EOS, so that any text is valid input and nothing is unknown.

It needs no vocabulary file and no torch, which lets a router count tokens. PAD is for batches of unequal length in
training; serving encodes one prompt at a time.
"""

from __future__ import annotations

BOS = 256
EOS = 257
PAD = 258
VOCAB_SIZE = 259


def tokenize(text: str) -> list[int]:
    """Return BOS, the text's UTF-8 bytes and EOS; a lone surrogate keeps its three-byte form."""
    return [BOS, *_utf8(text), EOS]


def count_tokens(text: str) -> int:
    """Count what `tokenize` would return: the bytes and the two specials."""
    return len(_utf8(text)) + 2


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogatepass")
