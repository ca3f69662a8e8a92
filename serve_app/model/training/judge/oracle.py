"""The oracle: what a clip of the world shows, read from its pixels alone.

It is the judge's eye, so it owes its callers independence from every model: no weights, only the world's own colours,
outlines and paths, of which the nearest is named. The background is read at the sides of the canvas; what differs
from it is the object, and how much it covers of each pixel gives its place, area and outline. It never raises on a
picture, however poor: what looks like nothing in the world is None, as a lucky guess would flatter the model.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from einops import rearrange
from torch import Tensor

from serve_app.core import Frames
from serve_app.model.training.world import world
from serve_app.model.training.world.world import Scene

_SIDES = 4  # columns on the left and on the right that show the background
_VISIBLE = 40.0  # least distance of the object's colour from the background's; the world's nearest are 89 apart
_PEAK = 0.02  # the share of a clip's pixels that are surely the object's
_SMALLEST = 20.0  # least area in pixels; the world's smallest is 85
_SEEN = 0.75  # the share of frames that must show the object
_BOUNDARY = 10.4  # radius between small and large, whose medians, with growing ones, are up to 9.0 and from 11.9
_LIKENESS = 0.88  # least correlation with an outline: half a disc has 0.86, a star under blur of sigma 1.6 has 0.93
_REACH, _OUTLINE, _STEP = 1.75, 24, 5  # outlines: half the side in radii, the side in pixels, degrees between two
_TURNS = torch.arange(-250, 251, 10)  # degrees over a clip that are tried; the world's are 200
_TURN_GAIN = 0.01  # the mean correlation that a turn must add; a rotating square adds 0.07, blurred 0.02
_STRAY = 0.5  # how far a path may be off, in mean squares of the world's: a diagonal is 1.0 off


def read(frames: Frames | Tensor) -> Scene:
    """Read the five attributes of a clip, uint8 RGB [num_frames, height, width, 3]; None for what cannot be read.

    The turn of a `rotate` may go either way and be half as wide as the world's; a circle never seems to rotate.
    """
    clip = _canvas(frames)
    backdrop = _backdrop(clip)
    background = _nearest_background(backdrop)
    color = _object_color(clip, backdrop)
    if color is None:
        return Scene(None, None, background, None, None)
    track = _track(_cover(clip, backdrop, color))
    if track is None:
        return Scene(None, _nearest_color(color), background, None, None)
    shape, turn = _shape_and_turn(track)
    size = "small" if track.radius.median() < _BOUNDARY else "large"
    return Scene(shape, _nearest_color(color), background, size, _motion(track, turn))


@dataclass(frozen=True, slots=True)
class _Track:
    """The frames that show the object: their times from 0 to 1, cover [n, 64, 64], centres and radii in pixels."""

    times: Tensor
    cover: Tensor
    x: Tensor
    y: Tensor
    radius: Tensor


def _canvas(frames: Frames | Tensor) -> Tensor:
    """Return float [num_frames, 64, 64, 3]; other sizes are brought to the world's."""
    clip = (frames if isinstance(frames, Tensor) else torch.tensor(frames)).float()
    if clip.shape[1:3] != (world.SIDE, world.SIDE):
        resized = F.interpolate(rearrange(clip, "n h w c -> n c h w"), (world.SIDE, world.SIDE), mode="area")
        clip = rearrange(resized, "n c h w -> n h w c")
    return clip


def _backdrop(clip: Tensor) -> Tensor:
    """Return the background's colour per row, [64, 3]: the median of the outermost columns over all frames."""
    edges = torch.cat([clip[:, :, :_SIDES], clip[:, :, -_SIDES:]], dim=2)
    return rearrange(edges, "n h w c -> h (n w) c").median(dim=1).values


def _nearest_background(backdrop: Tensor) -> str:
    ramps = torch.tensor(list(world.BACKGROUNDS.values()), dtype=torch.float32)
    down = torch.linspace(0, 1, world.SIDE)[:, None]
    known = ramps[:, :1] * (1 - down) + ramps[:, 1:] * down
    return list(world.BACKGROUNDS)[int((known - backdrop).norm(dim=-1).mean(dim=-1).argmin())]


def _nearest_color(color: Tensor) -> str:
    known = torch.tensor(list(world.COLORS.values()), dtype=torch.float32)
    return list(world.COLORS)[int((known - color).norm(dim=-1).argmin())]


def _object_color(clip: Tensor, backdrop: Tensor) -> Tensor | None:
    """Return the median colour [3] of the pixels that differ most from the background, None if none does."""
    apart = (clip - backdrop[:, None]).square().sum(dim=-1).sqrt().flatten()
    peak = apart.kthvalue(round(len(apart) * (1 - _PEAK))).values
    if peak < _VISIBLE:
        return None
    return clip.reshape(-1, 3)[apart > 0.75 * peak].median(dim=0).values


def _cover(clip: Tensor, backdrop: Tensor, color: Tensor) -> Tensor:
    """Return how much of each pixel is the object's, [n, 64, 64], zero away from pixels that mostly are."""
    contrast = color - backdrop
    weight = contrast / contrast.square().sum(dim=-1, keepdim=True).clamp(min=_VISIBLE**2)
    cover = torch.einsum("nhwc,hc->nhw", clip - backdrop[:, None], weight).clamp(0, 1)
    near = F.max_pool2d((cover > 0.5).float(), 5, stride=1, padding=2)
    return cover * near


def _track(cover: Tensor) -> _Track | None:
    """Follow the object through the frames that show it; None if too few do."""
    times = torch.linspace(0, 1, len(cover))
    area = cover.sum(dim=(1, 2))
    seen = area > _SMALLEST
    if seen.sum() < max(2, _SEEN * len(cover)):
        return None
    cover, area, pixels = cover[seen], area[seen], torch.arange(world.SIDE) + 0.5
    x = cover.sum(dim=1) @ pixels / area
    y = cover.sum(dim=2) @ pixels / area
    return _Track(times[seen], cover, x, y, (area / math.pi).sqrt())


def _shape_and_turn(track: _Track) -> tuple[str | None, float]:
    """Return the outline that fits best at any angles, and the degrees it turns over the clip (clockwise)."""
    likeness = _outlines(track) @ _templates().flatten(0, 1).T
    likeness = likeness.view(len(likeness), len(world.SHAPES), -1)
    by_shape = likeness.amax(dim=-1).mean(dim=0)
    best = int(by_shape.argmax())
    if by_shape[best] < _LIKENESS:
        return None, 0.0
    return world.SHAPES[best], _turn(likeness[:, best], track.times)


def _turn(likeness: Tensor, times: Tensor) -> float:
    """Return the steady turn that makes `likeness` [n, angles] highest, 0 unless it is clearly higher than at rest."""
    angles = likeness.shape[1]
    ahead = (_TURNS[:, None] * times / _STEP).round().long()
    at = (torch.arange(angles)[:, None] + ahead[:, None]) % angles  # [turns, angles, n]
    by_turn = likeness[torch.arange(len(times)), at].mean(dim=-1).amax(dim=-1)
    gain = by_turn - by_turn[len(_TURNS) // 2]
    return float(_TURNS[gain.argmax()]) if gain.max() > _TURN_GAIN else 0.0


def _outlines(track: _Track) -> Tensor:
    """Return the object of each frame at one place and size, [n, 24 * 24], of mean 0 and norm 1."""
    axis = torch.linspace(-_REACH, _REACH, _OUTLINE)
    offset = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    centre = torch.stack([track.x, track.y], dim=-1)[:, None, None]
    at = (centre + offset * track.radius[:, None, None, None]) / (world.SIDE / 2) - 1
    return _normalised(F.grid_sample(track.cover[:, None], at, align_corners=False)[:, 0])


@functools.cache
def _templates() -> Tensor:
    """Return the world's outlines at every angle in the same form, [shapes, 72, 24 * 24]."""
    angle = torch.deg2rad(torch.arange(0, 360, _STEP).float())[:, None, None]
    axis = torch.linspace(-_REACH, _REACH, _OUTLINE)
    dx, dy = torch.meshgrid(axis, axis, indexing="xy")
    at = torch.stack([angle.cos() * dx + angle.sin() * dy, angle.cos() * dy - angle.sin() * dx], dim=-1)
    fields = world.distance_fields()[None].expand(len(at), -1, -1, -1)
    distance = F.grid_sample(fields, at / world.REACH, align_corners=True).transpose(0, 1)
    return _normalised((0.5 - distance * world.SIZES["small"][0]).clamp(0, 1))


def _normalised(pictures: Tensor) -> Tensor:
    pixels = pictures.flatten(-2)
    return F.normalize(pixels - pixels.mean(dim=-1, keepdim=True), dim=-1)


def _motion(track: _Track, turn: float) -> str | None:
    """Return the motion whose path is nearest, `still` for half a path or less, None if all are far."""
    radius = min(float(track.radius.median()), world.SIZES["large"][1])
    travel = world.travel(radius)
    ramp = 2 * track.times - 1
    path = torch.stack([track.x / travel, track.y / travel, 2 * track.radius.log2(), ramp * abs(turn) / world.TURN])
    stray = (_paths(track.times) - _centred(path)).square().sum(dim=(1, 2)) / _centred(ramp).square().sum()
    best = int(stray.argmin())
    return world.MOTIONS[best] if stray[best] < _STRAY else None


def _paths(times: Tensor) -> Tensor:
    """Return the world's nine as x and y in travels, log2 of the area, and turn over 200 degrees: [motions, 4, n]."""
    ramp, rest = 2 * times - 1, torch.zeros_like(times)
    hop = 1 - 2 * (2 * math.pi * times).sin().abs()
    by_motion = {
        "left": (-ramp, rest, rest, rest),
        "right": (ramp, rest, rest, rest),
        "up": (rest, -ramp, rest, rest),
        "down": (rest, ramp, rest, rest),
        "grow": (rest, rest, ramp, rest),
        "shrink": (rest, rest, -ramp, rest),
        "rotate": (rest, rest, rest, ramp),
        "bounce": (rest, hop, rest, rest),
        "still": (rest, rest, rest, rest),
    }
    return _centred(torch.stack([torch.stack(by_motion[motion]) for motion in world.MOTIONS]))


def _centred(path: Tensor) -> Tensor:
    return path - path.mean(dim=-1, keepdim=True)
