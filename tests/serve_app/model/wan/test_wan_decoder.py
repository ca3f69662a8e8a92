"""The autoencoder's decoder: the pipeline's pixels, one video at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serve_app.model.sampler import initial_noise
from serve_app.model.wan.speed import Speed
from serve_app.model.wan.wan import WanFamily
from tests.serve_app.model.wan.reference import Reference
from tests.serve_app.model.wan.tiny_checkpoint import T2V_1_3B, TI2V_5B, Kind


@pytest.mark.parametrize("kind", [TI2V_5B, T2V_1_3B], ids=["5b", "1.3b"])
def test_frames_are_the_pipelines(
    wan: Callable[..., WanFamily], pipeline: Callable[..., Reference], kind: Kind
) -> None:
    """The same half-precision latents give the very same pixels, 1 + 4 frames for two latents."""
    latents = initial_noise((kind.z_dim, 2, 4, 6), 1).half()
    frames = wan(kind).load_decoder("cpu").decode(latents)
    assert frames.dtype == np.uint8
    assert frames.shape == (5, 4 * kind.spatial, 6 * kind.spatial, 3)
    assert frames.flags.c_contiguous
    assert np.array_equal(frames, pipeline(kind).frames(latents))


def test_two_threads_do_not_mix_their_videos(wan: Callable[..., WanFamily]) -> None:
    """The engine may decode in two threads; the autoencoder's memory of a video is on itself."""
    decoder = wan(TI2V_5B).load_decoder("cpu")
    videos = [initial_noise((8, 3, 2, 2), seed).half() for seed in range(6)]
    expected = [decoder.decode(latents) for latents in videos]
    with ThreadPoolExecutor(3) as threads:
        for frames, known in zip(threads.map(decoder.decode, videos), expected, strict=True):
            assert np.array_equal(frames, known)


def test_tiles_are_blended(wan: Callable[..., WanFamily], pipeline: Callable[..., Reference]) -> None:
    """Frames larger than a tile are the pipeline's with tiling on, and near the whole ones; small ones are the same."""
    family = wan(TI2V_5B)
    decoder = WanFamily("tiled", family.checkpoint, "float32", Speed(vae_tiling=True)).load_decoder("cpu")
    small, large = (initial_noise((8, 2, *size), 1).half() for size in ((4, 6), (4, 20)))
    assert np.array_equal(decoder.decode(small), family.load_decoder("cpu").decode(small))
    reference = pipeline(TI2V_5B)
    reference.pipeline.vae.enable_tiling()
    try:
        expected = reference.frames(large)
    finally:
        reference.pipeline.vae.disable_tiling()
    assert np.array_equal(decoder.decode(large), expected)
    apart = np.abs(expected.astype(int) - reference.frames(large))
    assert expected.shape == (5, 64, 320, 3)
    assert 0 < apart.mean() < 8
