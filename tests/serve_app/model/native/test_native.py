"""The demo family as its callers see it: card, fingerprints, and that all the parts together make a video."""

import dataclasses
import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from serve_app.core import Frames, VideoSpec
from serve_app.errors import Unprocessable
from serve_app.model.model import Decoder, Denoiser, TextEncoder
from serve_app.model.native import native
from serve_app.model.native.config import DEMO, DEMO_SIZES, FIVE_B, NativeConfig
from serve_app.model.native.native import NativeFamily, demo, fingerprint
from serve_app.model.native.tokenizer import Tokenizer
from serve_app.model.native.weights import SeededWeights
from serve_app.model.sampler import FlowMatchEulerSampler, initial_noise

TOKENIZER = Tokenizer(Path(native.__file__).parent / "demo" / "tokenizer.json")


EXACT = dataclasses.replace(DEMO, denoiser_dtype=None)
"""The demo in float32, of which rounding takes little."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def text_encoder() -> TextEncoder:
    return demo().load_text_encoder("cpu")


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return dataclasses.replace(demo(), config=EXACT).load_denoiser("cpu")


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return demo().load_decoder("cpu")


def spec(width: int = 48, height: int = 32, num_frames: int = 8, steps: int = 2) -> VideoSpec:
    return VideoSpec(
        model="native/demo",
        prompt="",
        negative_prompt="",
        seed=42,
        width=width,
        height=height,
        num_frames=num_frames,
        fps=16,
        num_inference_steps=steps,
        guidance_scale=1.0,
    )


def video(denoiser: Denoiser, decoder: Decoder, prompt_embeds: torch.Tensor, spec: VideoSpec, seed: int = 42) -> Frames:
    sampler = FlowMatchEulerSampler(spec.num_inference_steps, denoiser.sampler_shift)
    latents, prompt = initial_noise(denoiser.latent_shape(spec), seed), denoiser.prepare(prompt_embeds)
    for i, timestep in enumerate(sampler.timesteps):
        noise_pred = denoiser.predict(latents[None], torch.tensor([timestep]), [prompt])[0]
        latents = sampler.step(i, latents, noise_pred)
    return decoder.decode(latents.half())


def test_the_card_has_the_grid_of_the_preset() -> None:
    """Defaults: 64x64, 16 frames at 16 fps, 16 steps, guidance 2; the ends of every range are allowed."""
    card = demo().card
    defaults = (card.width, card.height, card.num_frames, card.fps, card.num_inference_steps, card.guidance_scale)
    assert [allowed.default for allowed in defaults] == [64, 64, 16, 16, 16, 2.0]
    assert all(allowed.minimum in allowed and allowed.maximum in allowed for allowed in defaults)
    assert 56 not in card.width
    assert 1.0 in card.guidance_scale
    assert card.max_prompt_tokens == 256


def test_every_setting_that_decides_a_pixel_is_in_a_fingerprint() -> None:
    """Changing seed, dtype, sampler or any number of a part changes the fingerprint of that part."""

    def prints(config: NativeConfig = DEMO, seed: int = 2) -> tuple[str, str, str]:
        card = NativeFamily(config, SeededWeights(seed), TOKENIZER).card
        return card.text_encoder_fingerprint, card.model_fingerprint, card.decoder_fingerprint

    def but(part: str, **changes: object) -> NativeConfig:
        changed = dataclasses.replace(getattr(DEMO, part), **changes)
        return dataclasses.replace(DEMO, **{part: changed})

    base = prints()
    changed = [
        (prints(seed=3), (True, True, True)),
        (prints(dataclasses.replace(DEMO, dtype="bfloat16")), (True, False, True)),
        (prints(EXACT), (False, True, False)),
        (prints(dataclasses.replace(DEMO, sampler_shift=5.0)), (False, True, False)),
        (prints(but("text_encoder", num_heads=3)), (True, False, False)),
        (prints(but("denoiser", num_heads=3)), (False, True, False)),
        (prints(but("autoencoder", channels=(32, 64, 96, 128))), (False, False, True)),
        (prints(), (False, False, False)),
    ]
    for got, expected in changed:
        assert tuple(a != b for a, b in zip(base, got, strict=True)) == expected
    assert len({*base}) == 3


def test_the_fingerprint_form_is_fixed() -> None:
    """Canonical JSON under SHA-256, a literal: a change of the form would silently empty every cache."""
    assert fingerprint(b=1, a={"y": 2.5, "x": "ü"}) == fingerprint(a={"x": "ü", "y": 2.5}, b=1)
    assert fingerprint(revision=1) == "d8560b7658c792bdded69837b055e2ed54708be6123b7bb4cc9fadf261ea091f"


def test_different_prompts_give_different_videos(
    text_encoder: TextEncoder, denoiser: Denoiser, decoder: Decoder
) -> None:
    """With one seed the prompt decides pixels visibly, the seed does too, and the same of both gives the same bits."""
    red, blue = text_encoder.encode(["a red circle moves left", "a blue square spins"])
    one = video(denoiser, decoder, red, spec())
    assert np.array_equal(one, video(denoiser, decoder, red, spec()))
    assert np.abs(one.astype(int) - video(denoiser, decoder, blue, spec())).mean() > 2
    assert np.abs(one.astype(int) - video(denoiser, decoder, red, spec(), seed=43)).mean() > 2


@pytest.mark.parametrize(("size", "num_frames"), [*itertools.product(DEMO_SIZES, (8, 9)), ((128, 128), 24)])
def test_any_offered_size_renders(
    size: tuple[int, int], num_frames: int, text_encoder: TextEncoder, denoiser: Denoiser, decoder: Decoder
) -> None:
    """Sizes and lengths all over give frames of the model's one size that vary in space and in time."""
    (embeds,) = text_encoder.encode(["a cat"])
    frames = video(denoiser, decoder, embeds, spec(*size, num_frames, steps=1))
    assert frames.shape == (num_frames, 64, 64, 3)
    assert frames.dtype == np.uint8
    assert frames.std() > 10
    assert np.abs(np.diff(frames.astype(int), axis=0)).mean() > 1


def test_an_embedding_does_not_depend_on_its_neighbours(text_encoder: TextEncoder) -> None:
    """A prompt encoded alone and among others gives the same bits, one row per token, 768 wide."""
    prompts = ["a cat", "", "ein größeres Bild " * 10]
    together = text_encoder.encode(prompts)
    for prompt, embeds in zip(prompts, together, strict=True):
        assert embeds.shape == (demo().count_tokens(prompt), 768)
        assert embeds.dtype == torch.float32
        assert torch.equal(embeds, text_encoder.encode([prompt])[0])


def test_an_embedding_survives_the_way_between_processes(text_encoder: TextEncoder) -> None:
    """Embeddings travel pickled and come back bit-equal."""
    (embeds,) = text_encoder.encode(["a cat"])
    assert torch.equal(pickle.loads(pickle.dumps(embeds)), embeds)


def test_the_longest_prompt_is_read_and_a_longer_one_refused(text_encoder: TextEncoder) -> None:
    """256 tokens are encoded; 257 are an Unprocessable on `prompt`, not an index error inside CLIP."""
    longest = demo().card.max_prompt_tokens
    text = "7" * (longest - demo().count_tokens(""))
    assert len(text_encoder.encode([text])[0]) == demo().count_tokens(text) == longest == 256
    with pytest.raises(Unprocessable) as caught:
        text_encoder.encode([text + "7"])
    assert caught.value.param == "prompt"


def test_padding_never_shows(text_encoder: TextEncoder, denoiser: Denoiser) -> None:
    """A short prompt batched with a much longer one gets the prediction it gets alone."""
    short, long = map(denoiser.prepare, text_encoder.encode(["a cat", "a very long story " * 20]))
    noise = initial_noise(denoiser.latent_shape(spec()), 1)
    alone = denoiser.predict(noise[None], torch.tensor([0.5]), [short])[0]
    padded = denoiser.predict(torch.stack([noise, noise]), torch.tensor([0.5, 0.5]), [short, long])[0]
    torch.testing.assert_close(padded, alone, atol=1e-4, rtol=0)


def test_the_large_preset_has_about_five_billion_weights() -> None:
    """The `5b` preset is the same architecture at 4.5 to 5.5 thousand million denoiser weights."""
    from serve_app.model.native.denoiser import DenoiserNet

    with torch.device("meta"):
        net = DenoiserNet(FIVE_B.denoiser)
    assert 4.5e9 < sum(parameter.numel() for parameter in net.parameters()) < 5.5e9
