"""What a server may trade: what of it a fingerprint says, and that a server which trades nothing says nothing."""

from __future__ import annotations

from serve_app.model.wan.speed import PLAIN, Speed


def test_plain_says_nothing() -> None:
    """With all of it off, fingerprints, descriptions and complaints have nothing to add."""
    assert Speed() == PLAIN
    assert (PLAIN.of_denoiser(), PLAIN.of_decoder(), PLAIN.asked_for, PLAIN.words) == ({}, {}, (), ())


def test_each_option_is_said_where_it_changes_pixels() -> None:
    """Quantisation and compiling are the denoiser's, tiling is the decoder's; int8 is not fp8."""
    assert Speed(quantization="int8").of_denoiser() != Speed(quantization="fp8").of_denoiser() != {}
    assert Speed(torch_compile=True).of_denoiser() != {} != Speed(vae_tiling=True).of_decoder()
    assert Speed(quantization="int8", torch_compile=True).of_decoder() == {} == Speed(vae_tiling=True).of_denoiser()


def test_what_was_asked_for_is_named() -> None:
    """Settings by name for complaints, in words for a card."""
    everything = Speed("fp8", torch_compile=True, vae_tiling=True)
    assert everything.asked_for == ("quantization", "torch_compile", "vae_tiling")
    assert everything.words == ("weights in fp8", "compiled", "decoded in tiles")
