"""The text encoder: trimmed embeddings are the pipeline's, once the denoiser has put the padding back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from serve_app.errors import Unprocessable
from serve_app.model.wan.tokenizer import MAX_TOKENS
from serve_app.model.wan.wan import WanFamily
from tests.serve_app.model.wan.reference import Reference
from tests.serve_app.model.wan.tiny_checkpoint import TI2V_5B

PROMPTS = ("", "a cat", "the camera pans over a mountain lake " * 9, "一只猫在草地上走 &amp; Paris")


def test_padded_embeddings_are_the_pipelines(wan: Callable[..., WanFamily], pipeline: Callable[..., Reference]) -> None:
    """Real tokens agree to rounding, and behind them are exactly the pipeline's zeros, up to 512 tokens."""
    family = wan(TI2V_5B)
    encoder, denoiser = family.load_text_encoder("cpu"), family.load_denoiser("cpu")
    for prompt, embeds in zip(PROMPTS, encoder.encode(PROMPTS), strict=True):
        (expected,), _ = pipeline(TI2V_5B).pipeline.encode_prompt(prompt, None, False, max_sequence_length=MAX_TOKENS)
        assert len(embeds) == family.count_tokens(prompt)
        padded = torch.zeros(MAX_TOKENS, embeds.shape[1])
        padded[: len(embeds)] = embeds
        assert torch.equal(padded[len(embeds) :], expected[len(embeds) :])
        torch.testing.assert_close(padded, expected, atol=1e-5, rtol=0)
        assert denoiser.context_dim == embeds.shape[1]


def test_company_does_not_change_an_embedding(wan: Callable[..., WanFamily]) -> None:
    """An embedding is stored under its own prompt's key: what else was asked in the call must not show in it."""
    encoder = wan(TI2V_5B).load_text_encoder("cpu")
    together = encoder.encode(PROMPTS)
    for prompt, embeds in zip(PROMPTS, together, strict=True):
        (alone,) = encoder.encode([prompt])
        assert (embeds.dtype, embeds.device.type) == (torch.float32, "cpu")
        assert torch.equal(alone, embeds)


def test_nothing_is_cut(wan: Callable[..., WanFamily]) -> None:
    """The pipeline cuts what is longer than 512 tokens; here it is refused by field."""
    encoder = wan(TI2V_5B).load_text_encoder("cpu")
    with pytest.raises(Unprocessable, match="at most 512") as caught:
        encoder.encode(["dog " * 600])
    assert caught.value.param == "prompt"
