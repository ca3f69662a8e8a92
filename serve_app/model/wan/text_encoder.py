"""UMT5, Wan's text encoder, as the family's TextEncoder.

WanPipeline pads every prompt to 512 tokens, hides the padding from attention and writes zeros over its embeddings; so
a prompt is encoded here by itself at its own length, which gives the same numbers for a fraction of the work, and an
embedding does not depend on what else was asked in the same call. The denoiser puts the zeros back.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoTokenizer, UMT5EncoderModel

from serve_app.errors import Unprocessable
from serve_app.model.rows import each_alone
from serve_app.model.wan.checkpoint.loading import load
from serve_app.model.wan.tokenizer import MAX_TOKENS, clean


class WanTextEncoder:
    """The network and its tokenizer on one device.

    batch_invariant: an embedding is the same to the bit with any number of threads.
    """

    def __init__(self, net: UMT5EncoderModel, tokenizer: Any, device: str, *, batch_invariant: bool = False) -> None:
        self._net = net
        self._tokenizer = tokenizer
        self._device = torch.device(device)
        self._batch_invariant = batch_invariant

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype, device: str, *, batch_invariant: bool = False) -> WanTextEncoder:
        """Load a checkpoint's `text_encoder` and `tokenizer`; NotFound when they do not fit."""
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        net = load(UMT5EncoderModel, folder / "text_encoder", dtype, device)
        return cls(net, tokenizer, device, batch_invariant=batch_invariant)

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """Return one float32 CPU tensor [num_tokens, text_dim] per prompt; Unprocessable when one is too long."""
        tokens = [self._tokens(prompt) for prompt in prompts]
        if self._batch_invariant:
            return each_alone(lambda row: self._encode_one(tokens[row]), len(tokens), self._device, in_pieces=True)
        return [self._encode_one(each) for each in tokens]

    def _tokens(self, prompt: str) -> list[int]:
        tokens: list[int] = self._tokenizer(clean(prompt), add_special_tokens=True).input_ids
        if len(tokens) > MAX_TOKENS:
            message = f"The prompt has {len(tokens)} tokens; the model reads at most {MAX_TOKENS}."
            raise Unprocessable(message, param="prompt")
        return tokens

    @torch.inference_mode()
    def _encode_one(self, tokens: Sequence[int]) -> Tensor:
        embeds = self._net(torch.tensor([list(tokens)], device=self._device)).last_hidden_state[0]
        return cast(Tensor, embeds.float().cpu())
