"""What UMT5 sees of a prompt: cleaned as diffusers' WanPipeline cleans it, and counted without torch.

Encore's normalised prompt is a prompt like any other to the pipeline, which mends mojibake, HTML entities and blanks
before the tokenizer; so the same is done here, by the same library. Its version is in the text encoder's fingerprint.
"""

from __future__ import annotations

import functools
import hashlib
import html
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import ftfy
from tokenizers import Tokenizer as Engine

MAX_TOKENS = 512
"""What WanPipeline reads of a prompt, specials included; shorter ones are padded to it with zeros."""


def clean(prompt: str) -> str:
    """Return what diffusers' `prompt_clean` makes of a prompt."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())


@dataclass(frozen=True)
class WanTokenizer:
    """A checkpoint's `tokenizer.json`."""

    path: Path

    @functools.cached_property
    def identity(self) -> list[str]:
        """The SHA-256 of the file, and what cleans prompts before it."""
        return [hashlib.sha256(self.path.read_bytes()).hexdigest(), f"ftfy {version('ftfy')}"]

    def count_tokens(self, prompt: str) -> int:
        """Count the tokens of the cleaned prompt, the end's among them."""
        return len(self._engine.encode(clean(prompt)).ids)

    @functools.cached_property
    def _engine(self) -> Engine:
        engine = Engine.from_str(self.path.read_text("utf-8"))
        engine.no_truncation()
        engine.no_padding()
        return engine
