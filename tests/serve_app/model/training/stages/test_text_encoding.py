"""Stage two: prompts as tokens, what they say as numbers, and the contrast between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from serve_app.model.native.condition import last_tokens
from serve_app.model.native.tokenizer import Tokenizer
from serve_app.model.training.recipe import SHORT_MODEL
from serve_app.model.training.stages import text_encoding
from serve_app.model.training.stages.text_encoding import Reader, Reading, pad_tokens, values_of
from serve_app.model.training.world.world import ATTRIBUTES, Scene
from tests.serve_app.model.training.short_run import ShortRun


@pytest.fixture(scope="module")
def stage(short_run: ShortRun) -> Reading:
    torch.manual_seed(0)
    return Reading(Reader(SHORT_MODEL.text_encoder), Tokenizer(short_run.folder / "tokenizer.json"), batch=8)


def test_padding_and_last_tokens() -> None:
    """Rows are padded behind their tokens, and the last real one of each is picked."""
    ids, mask = pad_tokens([[5, 6, 7], [8]], "cpu")
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[True] * 3, [True, False, False]]
    assert last_tokens(ids[..., None], mask).tolist() == [[7], [8]]


def test_values_count_from_one_and_zero_is_open() -> None:
    """An attribute's number is 1 + its place in the world's order, 0 when it was not said."""
    scene = Scene("circle", None, "black", "large", "still")
    assert values_of([scene]).tolist() == [[1, 0, 2, 2, len(ATTRIBUTES["motion"])]]


def test_the_loss_depends_on_the_generator_alone(stage: Reading) -> None:
    """The same generator state gives the same loss to the bit; the share that is read lies in [0, 1]."""
    first, figures = stage.loss(0, np.random.default_rng(5))
    torch.rand(3)
    assert torch.equal(first, stage.loss(9, np.random.default_rng(5))[0])
    assert not torch.equal(first, stage.loss(0, np.random.default_rng(6))[0])
    assert 0 <= figures["read"] <= 1


def test_contrast_wants_pairs_together(stage: Reading) -> None:
    """Two prompts of one scene at one point, far from all others, lose less than pairs that are swapped."""
    scenes = [Scene(shape, "red", "white", "small", "up") for shape in ATTRIBUTES["shape"]]
    points = torch.eye(len(scenes), 64)
    targets = values_of([*scenes, *scenes])
    together = stage._contrast(torch.cat([points, points]), targets)
    apart = stage._contrast(torch.cat([points, points.roll(1, dims=0)]), targets)
    assert together < 0.1 < apart


def test_contrast_forgives_equal_scenes_and_skips_partial_ones(stage: Reading) -> None:
    """A scene drawn twice is no false friend, and a prompt that leaves something open takes no part."""
    scene = Scene("star", "red", "white", "small", "up")
    points = torch.eye(4, 64)[[0, 0, 1, 2]]
    scenes = [scene, scene, Scene("heart", *("red", "white", "small", "up")), Scene("star", None, None, None, None)]
    pooled = torch.cat([points, points])
    with_partial = stage._contrast(pooled, values_of([*scenes, *scenes]))
    without = stage._contrast(torch.cat([points[:3], points[:3]]), values_of([*scenes[:3], *scenes[:3]]))
    assert torch.equal(with_partial, without)
    assert without.item() == pytest.approx(2 / 3 * np.log(2), abs=0.01)  # the twins share a place; no other loss


def test_only_training_scenes_are_read(stage: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    """No prompt of this stage is about a held-out combination, and every scene comes as a pair."""
    asked: list[Scene] = []
    real = text_encoding.training_prompt

    def recorded(scene: Scene, rng: np.random.Generator) -> tuple[str, Scene]:
        asked.append(scene)
        return real(scene, rng)

    monkeypatch.setattr(text_encoding, "training_prompt", recorded)
    stage.loss(0, np.random.default_rng(0))
    assert asked[:8] == asked[8:]
    assert not any(scene.held_out for scene in asked)


def test_the_tokenizer_is_the_runs_own(short_run: ShortRun) -> None:
    """The checkpoint carries the very tokenizer that the text encoder learnt with."""
    names = ("tokenizer.json", "checkpoint/tokenizer.json")
    assert len({Path(short_run.folder / name).read_bytes() for name in names}) == 1
