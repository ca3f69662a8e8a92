"""The CLIP text encoder, with a linear projection to the denoiser's 768-dim context.

Prompts are encoded each by itself, never padded together: an embedding is stored under the key of its own prompt, so
it must not depend, not even in its last bit, on what else was asked in the same call, or with `batch_invariant` on how
many threads there were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from serve_app.errors import Unprocessable
from serve_app.model.native.config import TextEncoderConfig
from serve_app.model.native.tokenizer import Tokenizer
from serve_app.model.rows import each_alone


class TextEncoderNet(nn.Module):
    """transformers' CLIPTextModel and the projection, which is the identity when the sizes agree."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                projection_dim=config.context_dim,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                max_position_embeddings=config.max_tokens,
                hidden_act=config.hidden_act,
                bos_token_id=config.vocab_size - 2,
                eos_token_id=config.vocab_size - 1,
                pad_token_id=config.vocab_size - 1,
            )
        )
        same = config.hidden_size == config.context_dim
        self.projection = nn.Identity() if same else nn.Linear(config.hidden_size, config.context_dim)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return [b, k, context_dim] for token ids [b, k]."""
        hidden = self.clip(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return cast(Tensor, self.projection(hidden))


class NativeTextEncoder:
    """The network and its tokenizer as the TextEncoder of the family, on one device."""

    def __init__(
        self,
        net: TextEncoderNet,
        tokenizer: Tokenizer,
        max_tokens: int,
        dtype: torch.dtype,
        device: str,
        *,
        batch_invariant: bool = False,
    ) -> None:
        self._net = net.to(device, dtype).eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._device = torch.device(device)
        self._batch_invariant = batch_invariant

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """Return one float32 CPU tensor [num_tokens, context_dim] per prompt; Unprocessable when one is too long."""
        tokens = [self._tokens(prompt) for prompt in prompts]
        if self._batch_invariant:
            return each_alone(lambda row: self._encode_one(tokens[row]), len(tokens), self._device)
        return [self._encode_one(each) for each in tokens]

    def _tokens(self, prompt: str) -> list[int]:
        tokens = self._tokenizer.tokenize(prompt)
        if len(tokens) > self._max_tokens:
            message = f"The prompt has {len(tokens)} tokens; the model reads at most {self._max_tokens}."
            raise Unprocessable(message, param="prompt")
        return tokens

    @torch.inference_mode()
    def _encode_one(self, tokens: Sequence[int]) -> Tensor:
        embeds = self._net(torch.tensor([list(tokens)], device=self._device))[0]
        return cast(Tensor, embeds.float().cpu())
