"""The demo's parts with `batch_invariant`: embeddings and frames know neither company nor threads."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.errors import InvalidRequest
from serve_app.model import pieces, rows
from serve_app.model.families import load_family
from serve_app.model.model import TextEncoder
from serve_app.model.native.native import demo
from serve_app.model.wan.speed import Speed

PROMPTS = ("", "a red circle", "a small blue star spinning on a black background" * 3, "一个大的黄色三角形")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@functools.cache
def encoder() -> TextEncoder:
    return demo().load_text_encoder("cpu")


@functools.cache
def alone(prompt: str) -> torch.Tensor:
    torch.set_num_threads(1)
    (embeds,) = encoder().encode([prompt])
    return embeds


@settings(max_examples=20)
@given(st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=6), st.integers(1, 4))
def test_an_embedding_is_the_same_alone_and_in_company(prompts: list[str], threads: int) -> None:
    """Whatever else is encoded in the same call, and with any number of threads, to the bit."""
    expected = [alone(prompt) for prompt in prompts]
    torch.set_num_threads(threads)
    assert all(map(torch.equal, encoder().encode(prompts), expected))


def test_frames_do_not_depend_on_threads_nor_on_how_latents_lie() -> None:
    """Latents cut out of a larger tensor, at an odd address and other strides, decode to the same pixels."""
    decoder = demo().load_decoder("cpu")
    whole = torch.randn((3, 9, 5, 8, 6), generator=torch.Generator().manual_seed(0)).half()
    cut = whole[1, 1:].permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found += [decoder.decode(each).tobytes() for each in (cut, whole[1, 1:].clone())]
    assert len(set(found)) == 1


def test_a_row_in_pieces_is_the_same_with_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is large enough to be shared among cores has the bytes that one core gives it."""
    monkeypatch.setattr(rows, "_IN_PIECES", 0)
    monkeypatch.setattr(pieces, "PIECE_FLOPS", 2**20)
    denoiser = demo().load_denoiser("cpu")
    prompt = denoiser.prepare(alone("a red circle"))
    latents = torch.randn((2, 8, 8, 6, 8), generator=torch.Generator().manual_seed(0))
    found = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        found += [
            denoiser.predict(batch, torch.full((len(batch),), 0.5), [prompt] * len(batch))[0]
            for batch in (latents[:1], latents)
        ]
    assert all(torch.equal(each, found[0]) for each in found)


def test_a_choice_is_in_every_fingerprint() -> None:
    """On, off and nobody's choice are three models to the cache, and silence is what it was."""
    cards = [load_family("native/demo", batch_invariant=choice).card for choice in (None, True, False)]
    for name in ("model_fingerprint", "text_encoder_fingerprint", "decoder_fingerprint"):
        assert len({getattr(card, name) for card in cards}) == 3
    assert demo().card.model_fingerprint == cards[0].model_fingerprint


def test_compiled_blocks_cannot_be_batch_invariant() -> None:
    """Asking for both is refused by name, before anything is loaded."""
    with pytest.raises(InvalidRequest, match="'batch_invariant' and 'torch_compile'"):
        load_family("native/demo", speed=Speed(torch_compile=True), batch_invariant=True)
