"""Clips are the world's own, rendered here; wrong ones are made from those by what a poor model would do."""

from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from serve_app.model.training.judge import judge, oracle
from serve_app.model.training.world import world
from serve_app.model.training.world.world import Scene

HEART = Scene("heart", "pink", "white", "small", "still")
NOTHING = Scene(None, None, None, None, None)
NOISE = torch.Generator().manual_seed(0)


def render(scene: Scene, num_frames: int = 16, side: int = world.SIDE) -> Tensor:
    return world.render([scene], np.random.default_rng(3), num_frames, side)[0]


def blurred(clip: Tensor) -> Tensor:
    weights = torch.exp(-(torch.arange(-3, 4) ** 2) / 2)  # sigma 1
    kernel = (torch.outer(weights, weights) / weights.sum() ** 2).expand(3, 1, 7, 7)
    padded = F.pad(clip.float().movedim(-1, 1), (3, 3, 3, 3), mode="replicate")
    return F.conv2d(padded, kernel, groups=3).movedim(1, -1)


def noisy(clip: Tensor) -> Tensor:
    return clip + 6 * torch.randn(clip.shape, generator=NOISE)


def reddish(clip: Tensor) -> Tensor:
    return clip + torch.tensor([12.0, -8.0, -8.0])


def to_uint8(clip: Tensor) -> Tensor:
    return clip.round().clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize(("num_frames", "count"), [(8, 60), (16, 160), (24, 40)])
def test_what_was_rendered_is_read(num_frames: int, count: int) -> None:
    """On clean clips of scenes from both sides of the split each attribute is right at least 99 times in a hundred."""
    table = judge.ceiling(count, seed=num_frames, num_frames=num_frames)
    assert set(table.scores) == {*world.ATTRIBUTES, "all"}
    assert {name: score for name, score in table.scores.items() if score.share < 0.99} == {}


@pytest.mark.parametrize("spoil", [lambda clip: noisy(blurred(clip)), reddish])
def test_blur_noise_and_a_cast_are_forgiven(spoil: Callable[[Tensor], Tensor]) -> None:
    """A decoder's usual faults cost at most two clips in a hundred."""
    table = judge.ceiling(60, seed=1, reconstruct=lambda clip: to_uint8(spoil(clip)))
    assert {name: score for name, score in table.scores.items() if score.share < 0.98} == {}


@pytest.mark.parametrize(
    ("motion", "backwards"),
    [("left", "right"), ("up", "down"), ("grow", "shrink"), ("rotate", "rotate"), ("bounce", "bounce")],
)
def test_a_clip_played_backwards_has_the_opposite_motion(motion: str, backwards: str) -> None:
    """Motion comes from the order of the frames, all else does not; turns count in either direction."""
    scene = replace(HEART, motion=motion)
    assert oracle.read(render(scene)) == scene
    assert oracle.read(render(scene).flip(0)) == replace(scene, motion=backwards)


def test_a_mirrored_clip_moves_the_other_way() -> None:
    """Left and right change places under a mirror, up and down do not."""
    left, up = replace(HEART, motion="left"), replace(HEART, motion="up")
    assert oracle.read(render(left).flip(2)) == replace(left, motion="right")
    assert oracle.read(render(up).flip(2)) == up


@pytest.mark.parametrize("motion", [motion for motion in world.MOTIONS if motion != "still"])
def test_a_frozen_clip_is_still(motion: str) -> None:
    """One frame of a motion, repeated, shows none."""
    frozen = render(replace(HEART, motion=motion))[6].expand(16, -1, -1, -1)
    assert oracle.read(frozen) == HEART


def test_a_third_of_a_path_is_still_and_two_thirds_are_the_motion() -> None:
    """The nearest of the world's paths counts, and half a path is as near to rest."""
    clip = render(replace(HEART, motion="right"), num_frames=25)
    assert oracle.read(clip[8:17]).motion == "still"
    assert oracle.read(clip[4:21]).motion == "right"


def test_a_path_that_is_not_the_worlds_is_no_motion() -> None:
    """A diagonal is as far from left as from up."""
    still = render(HEART)
    diagonal = torch.stack([frame.roll((2 * t - 15, 2 * t - 15), (0, 1)) for t, frame in enumerate(still)])
    jumps = torch.stack([frame.roll(12 * (-1) ** t, 0) for t, frame in enumerate(still)])
    assert oracle.read(diagonal) == replace(HEART, motion=None)
    assert oracle.read(jumps).motion is None


@pytest.mark.parametrize("background", world.BACKGROUNDS)
def test_a_clip_without_an_object_has_only_a_background(background: str) -> None:
    """What is not there is not guessed."""
    empty = render(replace(HEART, background=background))
    empty = empty[:, :, :1].expand(-1, -1, 64, -1)
    assert oracle.read(to_uint8(noisy(empty))) == replace(NOTHING, background=background)


def test_an_object_that_vanishes_has_no_motion() -> None:
    """An object that half of the frames lack keeps its colour and nothing else; a missing frame does no harm."""
    clip = render(replace(HEART, motion="left"))
    one, half = clip.clone(), clip.clone()
    one[5], half[8:] = clip[5, 0, 0], clip[5, 0, 0]
    assert oracle.read(one) == replace(HEART, motion="left")
    assert oracle.read(half) == Scene(None, "pink", "white", None, None)


def test_what_is_no_shape_is_not_called_one() -> None:
    """Half a disc and two discs are none of the world's outlines."""
    disc = render(replace(HEART, shape="circle"))
    half = disc.clone()
    half[:, :, :32] = disc[0, 0, 0]
    two = torch.minimum(disc.roll(-12, 2), disc.roll(12, 2))
    assert oracle.read(disc).shape == "circle"
    assert oracle.read(half).shape is None
    assert oracle.read(two).shape is None


@pytest.mark.parametrize("num_frames", [1, 2, 16])
def test_no_picture_is_too_poor(num_frames: int) -> None:
    """Darkness, noise, stripes and checks are read without an error, and no shape is seen in noise."""
    noise = torch.randint(0, 256, (num_frames, 64, 64, 3), generator=NOISE, dtype=torch.uint8)
    stripes = torch.zeros_like(noise)
    stripes[:, ::2] = 255
    checks = torch.zeros_like(noise)
    checks[:, 16:48, 16:48] = noise[:, :1, :1]
    for clip in (noise, stripes, stripes.transpose(1, 2), checks):
        for attribute, value in asdict(oracle.read(clip)).items():
            assert value is None or value in world.ATTRIBUTES[attribute]
    assert oracle.read(noise).shape is None
    assert oracle.read(torch.zeros_like(noise)) == replace(NOTHING, background="black")


def test_arrays_and_other_sizes_are_read_alike() -> None:
    """Decoded videos come as read-only arrays, and their canvas need not be the world's."""
    frames = render(HEART).numpy()
    frames.flags.writeable = False
    assert oracle.read(frames) == HEART
    assert oracle.read(render(HEART, side=96)) == HEART
