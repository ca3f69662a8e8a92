"""The denoiser's encoded clips: the same whoever makes them, made once, of training scenes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from serve_app.model.native.autoencoder import FrameEncoder
from serve_app.model.training.recipe import SHORT_MODEL
from serve_app.model.training.stages import clips
from serve_app.model.training.stages.clips import CHUNK, Clips
from serve_app.model.training.stages.trainer import Worker
from serve_app.model.training.world import world

COUNT, FRAMES = CHUNK + 8, 8


class Patient(Worker):
    """A worker that waits for nobody, so that two can work one after the other."""

    def meet(self) -> None:
        return


@pytest.fixture(scope="module")
def encoder() -> FrameEncoder:
    torch.manual_seed(0)
    return FrameEncoder(SHORT_MODEL.autoencoder)


def made(folder: Path, encoder: FrameEncoder, seed: int = 1) -> tuple[Clips, list[int]]:
    told: list[int] = []
    found = clips.clips(
        folder,
        encoder,
        count=COUNT,
        num_frames=FRAMES,
        seed=seed,
        worker=Worker(),
        progress=lambda done, of: told.append(done),
    )
    return found, told


def test_clips_are_made_once(tmp_path: Path, encoder: FrameEncoder) -> None:
    """A second call reads the file; another encoder or seed makes it again."""
    first, told = made(tmp_path, encoder)
    assert told == [CHUNK, COUNT]
    again, told = made(tmp_path, encoder)
    assert told == []
    assert np.array_equal(first.latents, again.latents)
    assert first.scenes == again.scenes
    torch.manual_seed(1)
    assert made(tmp_path, FrameEncoder(SHORT_MODEL.autoencoder))[1] == [CHUNK, COUNT]
    assert made(tmp_path, encoder, seed=2)[1] == [CHUNK, COUNT]


def test_the_number_of_workers_does_not_matter(tmp_path: Path, encoder: FrameEncoder) -> None:
    """Two workers' shares make the same file as one worker's."""
    alone, _ = made(tmp_path, encoder)
    shared = tmp_path / "shared.npy"
    for rank in (0, 1):
        clips._make(shared, encoder, alone.scenes, FRAMES, 1, Patient(rank, 2), lambda done, of: None)
    assert np.array_equal(np.load(shared), alone.latents)


def test_the_autoencoder_decides_how_large_latents_are(tmp_path: Path) -> None:
    """An encoder that makes one latent of 16 pixels a side gives 4x4 latents a frame."""
    coarse = replace(SHORT_MODEL.autoencoder, channels=(*SHORT_MODEL.autoencoder.channels, 8))
    assert coarse.downscale == 16
    found, _ = made(tmp_path, FrameEncoder(coarse))
    assert found.latents.shape == (COUNT, coarse.latent_channels, FRAMES, 4, 4)


def test_scenes_are_of_the_training_side_and_spread() -> None:
    """No held-out scene is drawn, and none twice before all came once."""
    every = world.scenes(held_out=False)
    drawn = clips._scenes(len(every) + 50, 16, seed=1)
    assert set(drawn[: len(every)]) == set(every)
    assert not any(scene.held_out for scene in drawn)


def test_rows_belong_to_their_scenes(tmp_path: Path, encoder: FrameEncoder) -> None:
    """A row holds the latents of its own scene's clip, rendered and encoded anew."""
    found, _ = made(tmp_path, encoder)
    rendered = world.render(found.scenes[CHUNK:], np.random.default_rng([1, FRAMES, CHUNK]), FRAMES)
    latents, scenes = found.take(np.arange(CHUNK, COUNT))
    assert scenes == list(found.scenes[CHUNK:])
    assert latents.dtype == torch.float32
    assert torch.equal(latents, clips.encode(encoder, rendered).float())
