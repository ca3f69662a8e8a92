import numpy as np
import pytest
import torch

from serve_app.model.native.autoencoder import ChannelLayerNorm, FrameDecoder, FrameEncoder, NativeDecoder
from serve_app.model.native.config import DEMO
from serve_app.model.native.weights import SeededWeights


def test_encoder_and_decoder_are_mirror_images() -> None:
    """64x64 pixels become 8 channels of 8x8 and come back as 64x64 pixels."""
    encoder, decoder = FrameEncoder(DEMO.autoencoder), FrameDecoder(DEMO.autoencoder)
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        latents = encoder(pixels)
        assert latents.shape == (2, 8, 8, 8)
        assert decoder(latents).shape == pixels.shape


def test_frames_are_decoded_one_by_one() -> None:
    """A frame decodes to the same pixels alone and among others, so any number of frames works."""
    decoder = FrameDecoder(DEMO.autoencoder)
    SeededWeights(0).fill(decoder, "test")
    latents = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(decoder(latents)[1:2], decoder(latents[1:2]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_frames", [1, 5, 9])
def test_frames_dealt_to_two_cores_are_the_same_frames(num_frames: int) -> None:
    """With two threads a video decodes to the pixels of one thread, within 1 of 255, in the same order."""
    net = FrameDecoder(DEMO.autoencoder)
    SeededWeights(0).fill(net, "test")
    decoder, before = NativeDecoder(net, torch.float32, "cpu"), torch.get_num_threads()
    latents = torch.randn(8, num_frames, 4, 4, generator=torch.Generator().manual_seed(0))
    decoded = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        decoded.append(decoder.decode(latents).astype(np.int16))
    torch.set_num_threads(before)
    assert decoded[0].shape == (num_frames, 32, 32, 3)
    assert np.abs(decoded[0] - decoded[1]).max() <= 1


def test_latents_leave_the_encoder_at_unit_scale() -> None:
    """Whatever the pixels' scale, each channel of a training batch has mean 0 and variance 1."""
    encoder = FrameEncoder(DEMO.autoencoder)
    with torch.no_grad():
        latents = encoder(torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.1)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(8), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.var(dim=(0, 2, 3)), torch.ones(8), atol=2e-2, rtol=0)


def test_the_norm_stays_within_one_position() -> None:
    """Changing one pixel's channels changes no other pixel's output, unlike a GroupNorm."""
    norm = ChannelLayerNorm(6)
    x = torch.randn(1, 6, 4, 4)
    changed = x.clone()
    changed[0, :, 0, 0] = torch.randn(6) * 100
    with torch.no_grad():
        differs = (norm(x) != norm(changed)).any(dim=1)[0]
    assert differs.sum() == 1
    assert bool(differs[0, 0])
