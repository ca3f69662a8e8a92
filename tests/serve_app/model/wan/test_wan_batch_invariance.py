"""Wan's parts with `batch_invariant`, as they are on a CPU: bytes know neither company nor threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch

from serve_app.model import pieces
from serve_app.model.model import ImageEncoder
from serve_app.model.sampler import initial_noise
from serve_app.model.wan.wan import WanFamily
from tests.serve_app.model.wan.tiny_checkpoint import T2V_A14B, TI2V_5B, Kind

Families = Callable[[Kind], WanFamily]
THREADS = (1, 2, 3, 4)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let tiny operations fall into pieces as those of a real checkpoint do, and leave torch's threads as they were."""
    monkeypatch.setattr(pieces, "PIECE_FLOPS", 2**14)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def bytes_by_threads(compute: Callable[[], Sequence[bytes]]) -> set[bytes]:
    found: set[bytes] = set()
    for threads in THREADS:
        torch.set_num_threads(threads)
        found |= set(compute())
    return found


@pytest.mark.parametrize("kind", [TI2V_5B, T2V_A14B], ids=["5b", "a14b"])
def test_a_row_is_the_same_alone_and_in_company(wan: Families, kind: Kind) -> None:
    """Beside rows with longer prompts, other transformers and given first frames, in any place, with any threads."""
    denoiser = wan(kind).load_denoiser("cpu")
    channels = kind.z_dim
    own, others = initial_noise((channels, 3, 4, 6), 1), initial_noise((3, channels, 3, 4, 6), 2)
    embeds = [initial_noise((length, 32), length) for length in (2, 9, 1, 5)]

    def predicted() -> list[bytes]:
        mine, *theirs = map(denoiser.prepare, embeds)
        noise_pred = [denoiser.predict(own[None], torch.tensor([900.0]), [mine])[0]]
        for place in (0, 2):
            latents = torch.cat([others[:place], own[None], others[place:]])
            timesteps = torch.tensor([20.0, 30.0, 40.0, 50.0])
            timesteps[place] = 900.0
            prompts = [*theirs[:place], mine, *theirs[place:]]
            noise_pred.append(denoiser.predict(latents, timesteps, prompts)[place])
            if kind is TI2V_5B:  # the others' first frames are given
                by_frame = timesteps[:, None].repeat(1, 3)
                by_frame[[row for row in range(4) if row != place], 0] = 0.0
                noise_pred.append(denoiser.predict(latents, by_frame, prompts)[place])
        return [each.numpy().tobytes() for each in noise_pred]

    assert len(bytes_by_threads(predicted)) == 1


def test_frames_first_frames_and_embeddings_do_not_depend_on_threads(wan: Families) -> None:
    """The autoencoder both ways, and the text encoder alone and for several prompts."""
    family = wan(TI2V_5B)
    decoder, encoder = family.load_decoder("cpu"), family.load_text_encoder("cpu")
    assert isinstance(decoder, ImageEncoder)
    latents = initial_noise((8, 2, 4, 6), 1).half()
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    assert len(bytes_by_threads(lambda: [decoder.decode(latents).tobytes()])) == 1
    assert len(bytes_by_threads(lambda: [decoder.encode_image(picture).numpy().tobytes()])) == 1
    several = ["a cat", "the camera pans over a mountain lake " * 9, ""]
    found = bytes_by_threads(
        lambda: [encoder.encode(prompts)[0].numpy().tobytes() for prompts in (several[:1], several)]
    )
    assert len(found) == 1


def test_a_choice_is_in_every_fingerprint(wan: Families) -> None:
    """Nobody's choice leaves the fingerprints as they are; on and off are models of their own."""
    family = wan(TI2V_5B)
    cards = [
        WanFamily(family.name, family.checkpoint, family.dtype, family.speed, choice).card
        for choice in (None, True, False)
    ]
    assert len({card.model_fingerprint for card in cards}) == 3
    assert len({card.image_encoder_fingerprint for card in cards}) == 3
    assert cards[0].model_fingerprint == family.card.model_fingerprint
