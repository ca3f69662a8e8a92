"""The weights in the package: what is shipped is what was trained."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from serve_app.core import VideoSpec
from serve_app.engine.denoising import Trajectory, advance
from serve_app.model.native import native
from serve_app.model.native.config import DEMO, NativeConfig
from serve_app.model.native.native import demo, from_folder
from serve_app.model.training.judge.questions import questions
from serve_app.render.evaluation import Evaluation

FOLDER = Path(native.__file__).parent / "demo"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_weights_are_half_precision_and_small() -> None:
    """At most 30 MB, every tensor float16 and finite, all four parts."""
    path = FOLDER / "weights.safetensors"
    assert path.stat().st_size <= 30_000_000
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    assert {name.partition(".")[0] for name in tensors} == {"text_encoder", "denoiser", "decoder", "encoder"}
    assert all(tensor.dtype == torch.float16 and bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_the_folder_is_a_checkpoint_like_any_other() -> None:
    """Its config is the preset's, so that loading it as a folder computes the same under the same fingerprints."""
    assert NativeConfig.from_dict(json.loads((FOLDER / "config.json").read_text())) == DEMO
    card, other = demo().card, from_folder(FOLDER).card
    assert card.name == other.name == "native/demo"
    assert card.model_fingerprint == other.model_fingerprint


def test_the_card_tells_of_these_weights() -> None:
    """The model card beside them has its accuracy filled in."""
    card = (FOLDER / "README.md").read_text("utf-8")
    assert "Not measured yet" not in card
    assert "held-out" in card


def test_videos_show_what_was_asked() -> None:
    """Of 16 prompts that training never saw, in both languages, eight steps give colour and background, and all five
    attributes of most."""
    answers = list(Evaluation(demo()).ask(questions(16, seed=1), 8))
    met = [answer.verdict.met for answer in answers]
    assert sum(each["color"] and each["background"] for each in met) >= 15
    assert sum(all(each.values()) for each in met) >= 12


@pytest.mark.parametrize("prompt", ["", "the stock market fell", "ein Haus", "🦊🦊🦊", "ابرِ سفید", "7" * 200])
def test_prompts_outside_the_world_give_a_video(prompt: str) -> None:
    """Whatever is asked, frames come out, finite and of the asked shape."""
    family = demo()
    denoiser = family.load_denoiser("cpu")
    embeds, negative = family.load_text_encoder("cpu").encode([prompt, ""])
    spec = VideoSpec(
        model="native/demo", prompt=prompt, negative_prompt="", seed=1, width=64, height=64, num_frames=8, fps=8,
        num_inference_steps=2, guidance_scale=3.0,
    )  # fmt: skip
    (trajectory,) = advance(denoiser, advance(denoiser, [Trajectory.of(denoiser, spec, embeds, negative)]))
    assert trajectory.is_finite
    frames = family.load_decoder("cpu").decode(trajectory.final_latents())
    assert frames.shape == (8, 64, 64, 3)
    assert np.isfinite(frames).all()
