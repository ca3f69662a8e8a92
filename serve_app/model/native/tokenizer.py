"""The family's tokenizers: a byte-level BPE (GPT-2's form of arXiv 1508.07909) for which any text is valid input.

A checkpoint folder brings its `tokenizer.json`: the demo's has 2,048 tokens, learnt from the world's captions and
common English words; a CLIP checkpoint's is CLIP's own. Both are run by the `tokenizers` library, which needs no
torch, so that a router can count tokens. Texts become BOS, their tokens and EOS; nothing is ever cut.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Engine

FILE = "tokenizer.json"
_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"  # CLIP's names, so that its files need no other treatment


@dataclass(frozen=True)
class Tokenizer:
    """One `tokenizer.json`."""

    path: Path

    @functools.cached_property
    def identity(self) -> str:
        """The SHA-256 of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    @functools.cached_property
    def vocab_size(self) -> int:
        """How many ids there are; the specials are among them."""
        return self._engine.get_vocab_size()

    @functools.cached_property
    def bos(self) -> int:
        """The id before every text."""
        return self._special(_BOS)

    @functools.cached_property
    def eos(self) -> int:
        """The id after every text; it pads batches too, behind a mask."""
        return self._special(_EOS)

    def tokenize(self, text: str) -> list[int]:
        """Return BOS, the text's tokens and EOS. A special's name in the text is text; a lone surrogate is U+FFFD."""
        return [self.bos, *self._engine.encode(_whole(text), add_special_tokens=False).ids, self.eos]

    def count_tokens(self, text: str) -> int:
        """Count what `tokenize` would return."""
        return len(self.tokenize(text))

    @functools.cached_property
    def _engine(self) -> Engine:
        engine = Engine.from_str(self.path.read_text("utf-8"))
        engine.no_truncation()
        engine.no_padding()
        engine.encode_special_tokens = True  # "<|endoftext|>" in a prompt must not end it
        return engine

    def _special(self, name: str) -> int:
        token = self._engine.token_to_id(name)
        if token is None:
            raise ValueError(f"{self.path} has no token {name}")
        return token


def train(texts: Iterable[str], vocab_size: int) -> str:
    """Learn a byte-level BPE from `texts`; returns a `tokenizer.json`. The same texts give the same file.

    Han characters stand alone before merging, or whole phrases without blanks between their words would be learnt.
    """
    engine = Engine(models.BPE())
    han = pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated")
    engine.pre_tokenizer = pre_tokenizers.Sequence([han, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    engine.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[_BOS, _EOS], initial_alphabet=sorted(alphabet), show_progress=False
    )
    engine.train_from_iterator(texts, trainer)
    return json.dumps(json.loads(engine.to_str()), ensure_ascii=True, separators=(",", ":")) + "\n"


def _whole(text: str) -> str:
    return text.encode("utf-16-le", errors="surrogatepass").decode("utf-16-le", errors="replace")
