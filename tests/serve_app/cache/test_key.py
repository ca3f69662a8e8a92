"""The chain of keys: complete, canonical, stable."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.cache import key as module
from serve_app.cache.key import Part, digest, image_key, keys_for, prompt_key
from serve_app.core import FloatRange, IntRange, Keys, ModelCard, PromptRules, VideoSpec

CARD = ModelCard(
    name="native/demo",
    family="native",
    description="test",
    model_fingerprint="model-1",
    text_encoder_fingerprint="clip-1",
    decoder_fingerprint="vae-1",
    width=IntRange(64, 128, 64, 64),
    height=IntRange(64, 128, 64, 64),
    num_frames=IntRange(8, 24, 16),
    fps=IntRange(1, 24, 16),
    num_inference_steps=IntRange(1, 50, 8),
    guidance_scale=FloatRange(1.0, 20.0, 5.0),
    max_prompt_tokens=77,
)
SPEC = VideoSpec(
    model="native/demo",
    prompt="a cat playing piano",
    negative_prompt="blurry",
    seed=42,
    width=64,
    height=64,
    num_frames=16,
    fps=16,
    num_inference_steps=8,
    guidance_scale=5.0,
)
ENCODER = "h264-1"

GOLDEN = Keys(
    prompt="e2337c3b7edb5e7f5e68ff2e1ad9493326715e37ddd1e9ebb5b67a0a5712aee4",
    negative_prompt="e03135bcd976b4147bc632efe53442051e3c522ca7ab56489914bf325a4821b0",
    latents="ed2cd12fc4f4936f332920b28d6270dcdafe426c857bbf2f380e751cf5cc9ebf",
    video="c719072fc66c7e7b6394c9272fb9b9f5176ffb84a7a5bb36b8ccd63b263a57d7",
)
"""What releases write into people's caches, with revision 3 of the prompt rules, which is a part of key(prompt).

If these change, bump REVISION (or the rules' own) on purpose, then these.
"""

ALL = {"prompt", "negative_prompt", "latents", "video"}
SPEC_CHANGES: dict[str, tuple[Any, set[str]]] = {
    "prompt": ("a dog playing piano", {"prompt", "latents", "video"}),
    "negative_prompt": ("", {"negative_prompt", "latents", "video"}),
    "scope": ("tenant-1", ALL),
    "seed": (43, {"latents", "video"}),
    "width": (128, {"latents", "video"}),
    "height": (128, {"latents", "video"}),
    "num_frames": (17, {"latents", "video"}),
    "num_inference_steps": (9, {"latents", "video"}),
    "guidance_scale": (5.000001, {"latents", "video"}),
    "fps": (15, {"video"}),
    "container": ("webm", {"video"}),
    "codec": ("hevc", {"video"}),
    "quality": (24, {"video"}),
    "input_reference": ("ab" * 32, {"latents", "video"}),
    "model": ("native/alias", set()),  # the model is in the key through its fingerprints: aliases share entries
}
CARD_CHANGES: dict[str, tuple[Any, set[str]]] = {
    "text_encoder_fingerprint": ("clip-2", ALL),
    "prompt_rules": (PromptRules(fold_case=False), ALL),
    "model_fingerprint": ("model-2", {"latents", "video"}),
    "decoder_fingerprint": ("vae-2", {"video"}),
    "image_encoder_fingerprint": ("vae-1", set()),  # of a video from text alone
    "description": ("other words", set()),
    "aliases": (("demo",), set()),
}


def changed(one: Keys, other: Keys) -> set[str]:
    return {f.name for f in dataclasses.fields(Keys) if getattr(one, f.name) != getattr(other, f.name)}


def test_golden_values() -> None:
    """The chain of one spec has the very values it always had."""
    assert module.REVISION == 1
    assert keys_for(SPEC, CARD, ENCODER) == GOLDEN


def test_revision_changes_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bumping REVISION leaves no old entry reachable."""
    before = keys_for(SPEC, CARD, ENCODER)
    monkeypatch.setattr(module, "REVISION", 2)
    assert changed(before, keys_for(SPEC, CARD, ENCODER)) == ALL


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(VideoSpec)])
def test_a_spec_field_changes_what_it_must(field: str) -> None:
    """Each field changes its own stage and all later ones, and nothing before: a new field must be entered here."""
    value, expected = SPEC_CHANGES[field]
    other = keys_for(dataclasses.replace(SPEC, **{field: value}), CARD, ENCODER)
    assert changed(keys_for(SPEC, CARD, ENCODER), other) == expected


@pytest.mark.parametrize("field", CARD_CHANGES)
def test_a_fingerprint_changes_what_it_must(field: str) -> None:
    """Other weights or rules give other keys from their stage on; words about the model give none."""
    value, expected = CARD_CHANGES[field]
    other = keys_for(SPEC, dataclasses.replace(CARD, **{field: value}), ENCODER)
    assert changed(keys_for(SPEC, CARD, ENCODER), other) == expected


def test_an_image_s_key_is_its_pixels_and_what_encodes_them() -> None:
    """Two images never share latents, nor does one under two autoencoders; tenants share no image's name."""
    first, second = (dataclasses.replace(SPEC, input_reference=each * 32) for each in ("ab", "cd"))
    card, other = (dataclasses.replace(CARD, image_encoder_fingerprint=each) for each in ("vae-1", "vae-2"))
    assert changed(keys_for(first, card, ENCODER), keys_for(second, card, ENCODER)) == {"latents", "video"}
    assert changed(keys_for(first, card, ENCODER), keys_for(first, other, ENCODER)) == {"latents", "video"}
    specs = [first, second, *(dataclasses.replace(first, **each) for each in ({"scope": "t"}, {"width": 128}))]
    assert len({image_key(each) for each in specs}) == 4
    assert image_key(first) == image_key(dataclasses.replace(first, prompt="another", seed=7))


def test_the_encoder_changes_only_the_file() -> None:
    """Another encoder build makes another file of the same latents."""
    assert changed(keys_for(SPEC, CARD, ENCODER), keys_for(SPEC, CARD, "h264-2")) == {"video"}


def test_swapping_prompt_and_negative_prompt_is_another_video() -> None:
    """The two prompts have their own places in the chain, though the same text has one embedding key."""
    swapped = dataclasses.replace(SPEC, prompt=SPEC.negative_prompt, negative_prompt=SPEC.prompt)
    one, other = keys_for(SPEC, CARD, ENCODER), keys_for(swapped, CARD, ENCODER)
    assert (one.prompt, one.negative_prompt) == (other.negative_prompt, other.prompt)
    assert one.latents != other.latents


parts = st.lists(
    st.one_of(st.text(), st.integers(), st.floats(allow_nan=False), st.sampled_from(["", ",", '"', "0x1.4p+2", "5"])),
    max_size=6,
)


def meaning(part: Part) -> tuple[str, Part]:
    """Tell apart what must be told apart: text from numbers, and -0.0 from nothing."""
    return (type(part).__name__, part + 0.0 if isinstance(part, float) else part)


@given(parts, parts)
def test_equal_digests_mean_equal_parts(one: list[Part], other: list[Part]) -> None:
    """Canonical bytes are injective: two lists of parts share a digest only if they are the same list."""
    same = [meaning(part) for part in one] == [meaning(part) for part in other]
    assert (digest("s", *one) == digest("s", *other)) is same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab", "c"), ("a", "bc")),
        (("a", ""), ("a",)),
        (('a","b',), ("a", "b")),
        (("1",), (1,)),
        ((5.0,), ("0x1.4000000000000p+2",)),
        (("é",), ("e\u0301",)),
        (("\ud800",), ("\\ud800",)),
        (("\ud800\udc00",), ("\U00010000",)),
        ((2**63,), (2**63 + 1,)),
    ],
)
def test_look_alikes_do_not_collide(one: tuple[Part, ...], other: tuple[Part, ...]) -> None:
    """Borders between parts, quoting and types cannot be forged by the text of a part."""
    assert digest("s", *one) != digest("s", *other)


def test_stages_do_not_collide() -> None:
    """The same parts name different things at different stages."""
    assert digest("prompt", "a") != digest("latents", "a")


@given(st.integers(-(2**40), 2**40))
def test_one_number_one_key(whole: int) -> None:
    """A guidance of 5 and of 5.0, and of 0.0 and -0.0, is one number."""
    one = keys_for(dataclasses.replace(SPEC, guidance_scale=whole), CARD, ENCODER)
    other = keys_for(dataclasses.replace(SPEC, guidance_scale=float(whole)), CARD, ENCODER)
    assert one == other
    assert digest("s", 0.0) == digest("s", -0.0)


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_two_numbers_two_keys(one: float, other: float) -> None:
    """However close two guidance scales are, they have two keys."""
    first = keys_for(dataclasses.replace(SPEC, guidance_scale=one), CARD, ENCODER)
    second = keys_for(dataclasses.replace(SPEC, guidance_scale=other), CARD, ENCODER)
    assert (first.latents == second.latents) is (one == other)


@given(st.text(), st.text())
def test_prompt_key_is_what_the_chain_uses(scope: str, prompt: str) -> None:
    """The embedding cache and the chain name one prompt alike, in 64 hex digits."""
    spec = dataclasses.replace(SPEC, scope=scope, prompt=prompt)
    made = prompt_key(CARD, scope, prompt)
    assert made == keys_for(spec, CARD, ENCODER).prompt
    assert len(bytes.fromhex(made)) == 32


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_stable_across_processes(hash_seed: str) -> None:
    """Another process with another hash seed makes the same keys: replicas and restarts share one cache."""
    program = "from serve_app.cache.key import digest; print(digest('s', 'a cat', 5, 5.5, -3))"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    printed = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == digest("s", "a cat", 5, 5.5, -3)
