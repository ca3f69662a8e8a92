"""The demo's world: clips of one shape of one colour and size, moving in one way before one background.

Every clip is drawn from a scene (what a caption can say) and a seeded generator (what it cannot: the exact place,
radius, shade). Shapes are signed distance fields, so edges are anti-aliased at any size and angle. Sizes are radii of
circles of equal area: a large star and a large square cover the same number of pixels, which is how the judge tells
sizes apart. Some combinations of attributes are held out: training never sees them and the judge asks for them.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from numpy.typing import NDArray
from torch import Tensor

SIDE = 64
"""The canvas that all lengths below are given for, in pixels."""

COLORS: Mapping[str, tuple[int, int, int]] = {
    "red": (220, 35, 40),
    "orange": (250, 140, 20),
    "yellow": (250, 225, 40),
    "green": (40, 165, 70),
    "cyan": (0, 200, 210),
    "blue": (45, 85, 230),
    "purple": (135, 50, 185),
    "pink": (250, 130, 185),
}

BACKGROUNDS: Mapping[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "white": ((245, 245, 245), (245, 245, 245)),
    "black": ((12, 12, 12), (12, 12, 12)),
    "gray": ((128, 128, 128), (128, 128, 128)),
    "navy": ((14, 18, 56), (22, 30, 84)),
    "sky": ((130, 190, 240), (190, 225, 250)),
    "sand": ((238, 218, 175), (220, 195, 145)),
}
"""Each background's colour at the top and at the bottom."""

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
SIZES: Mapping[str, tuple[float, float]] = {"small": (8.0, 9.0), "large": (13.0, 14.5)}
"""Radii of the circles of equal area, in pixels of a 64-pixel canvas."""
MOTIONS = ("left", "right", "up", "down", "grow", "shrink", "rotate", "bounce", "still")

ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "color": tuple(COLORS),
    "background": tuple(BACKGROUNDS),
    "size": tuple(SIZES),
    "motion": MOTIONS,
}

REACH = 2.2
"""How far the distance fields extend, in radii; the longest reach of a shape is the star's 1.55."""
TURN = 200
"""Degrees that a shape rotates over a clip."""

_GRID = 192
_SHADE = 6.0  # how far each channel of a colour may be off, of 255
_HELD_OUT_IN = 12  # one combination in so many


@dataclass(frozen=True, slots=True)
class Scene:
    """What a caption can say of a clip; a value of None is left open."""

    shape: str | None
    color: str | None
    background: str | None
    size: str | None
    motion: str | None

    @property
    def held_out(self) -> bool:
        """Whether training never sees this combination; only a scene that leaves nothing open can be."""
        if None in astuple(self):
            return False
        digest = hashlib.sha256("/".join(astuple(self)).encode()).digest()
        return digest[0] % _HELD_OUT_IN == 0


@functools.cache
def scenes(held_out: bool) -> tuple[Scene, ...]:
    """Return every full combination on one side of the split, in a fixed order."""
    every = (Scene(*values) for values in itertools.product(*ATTRIBUTES.values()))
    return tuple(scene for scene in every if scene.held_out == held_out)


def drawn(every: Sequence[Scene], count: int, rng: np.random.Generator) -> tuple[Scene, ...]:
    """Draw `count` of the scenes, without repeating one before all were drawn."""
    rounds = [rng.permutation(len(every)) for _ in range(-(-count // len(every)))]
    return tuple(every[i] for i in np.concatenate(rounds)[:count])


def travel(radius: float) -> float:
    """Return how far from the middle a moving shape's path goes, in pixels: as far as the canvas allows."""
    return 28 - 1.3 * radius


def render(scenes: Sequence[Scene], rng: np.random.Generator, num_frames: int = 16, side: int = SIDE) -> Tensor:
    """Draw one clip per full scene: uint8 RGB [clips, num_frames, side, side, 3]; the same `rng` state, the same clips.

    Motions take the whole clip, however many frames it has.
    """
    sketches = [_sketch(scene, rng, num_frames) for scene in scenes]
    path = torch.from_numpy(np.stack([sketch.path for sketch in sketches]))
    cover = _coverage([SHAPES.index(cast(str, scene.shape)) for scene in scenes], path, side)[..., None]
    color = torch.from_numpy(np.stack([sketch.color for sketch in sketches]))[:, None, None, None]
    ramp = torch.from_numpy(np.stack([sketch.background for sketch in sketches]))
    down = torch.linspace(0, 1, side)[:, None]
    background = (ramp[:, None, 0] * (1 - down) + ramp[:, None, 1] * down)[:, None, :, None]
    return (background + (color - background) * cover).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True, slots=True)
class _Sketch:
    """A clip's geometry, [frames, 4] of centre x, centre y, radius, angle, and its shades."""

    path: NDArray[np.float32]
    color: NDArray[np.float32]
    background: NDArray[np.float32]


def _sketch(scene: Scene, rng: np.random.Generator, num_frames: int) -> _Sketch:
    color = np.array(COLORS[cast(str, scene.color)]) + rng.uniform(-_SHADE, _SHADE, 3)
    background = np.array(BACKGROUNDS[cast(str, scene.background)]) + rng.uniform(-_SHADE / 2, _SHADE / 2, 3)
    radius = rng.uniform(*SIZES[cast(str, scene.size)])
    x, y = SIDE / 2 + rng.uniform(-4, 4, 2)
    path = _path(cast(str, scene.motion), x, y, radius, np.linspace(0, 1, num_frames))
    return _Sketch(path.astype(np.float32), color.astype(np.float32), background.astype(np.float32))


def _path(motion: str, x: float, y: float, radius: float, u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return [frames, 4] for times `u` from 0 to 1."""
    ramp = travel(radius) * (1 - 2 * u)
    hop = travel(radius) * (1 - 2 * np.abs(np.sin(2 * math.pi * u)))
    scale = 0.65 * 2**u  # doubles over the clip, about the nominal size in the middle
    still = np.zeros_like(u)
    dx = {"left": ramp, "right": -ramp}.get(motion, still)
    dy = {"up": ramp, "down": -ramp, "bounce": hop}.get(motion, still)
    factor = {"grow": scale, "shrink": scale[::-1]}.get(motion, still + 1)
    angle = math.radians(TURN) * u if motion == "rotate" else still
    return np.stack([x + dx, y + dy, radius * factor, angle], axis=-1)


def _coverage(shapes: Sequence[int], path: Tensor, side: int) -> Tensor:
    """Return how much of each pixel the shape covers, [clips, frames, side, side]."""
    clips, frames, _ = path.shape
    x, y, radius, angle = path.flatten(0, 1).unbind(-1)
    pixels = (torch.arange(side) + 0.5) * (SIDE / side)
    dx = (pixels[None, None, :] - x[:, None, None]) / radius[:, None, None]
    dy = (pixels[None, :, None] - y[:, None, None]) / radius[:, None, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    at = torch.stack([cos * dx + sin * dy, cos * dy - sin * dx], dim=-1) / REACH
    fields = distance_fields()[torch.tensor(shapes).repeat_interleave(frames)][:, None]
    distance = F.grid_sample(fields, at, padding_mode="border", align_corners=True)[:, 0]
    cover = (0.5 - distance * radius[:, None, None] * (side / SIDE)).clamp(0, 1)
    return cover.view(clips, frames, side, side)


@functools.cache
def distance_fields() -> Tensor:
    """Return [shapes, 192, 192]: signed distances in radii over [-2.2, 2.2]², negative inside, y pointing down."""
    axis = np.linspace(-REACH, REACH, _GRID)
    points = np.stack(np.meshgrid(axis, axis), axis=-1)
    return torch.from_numpy(np.stack([_distances(_outline(shape), points) for shape in SHAPES]).astype(np.float32))


def _outline(shape: str) -> NDArray[np.float64]:
    """Return a shape's corners [n, 2], its centroid at 0 and its area that of the unit circle."""
    outlines: Mapping[str, Callable[[], NDArray[np.float64]]] = {
        "circle": functools.partial(_polygon, 96),
        "square": functools.partial(_polygon, 4, turn=0.5),
        "triangle": functools.partial(_polygon, 3),
        "star": functools.partial(_polygon, 10, inner=0.45),
        "heart": _heart,
        "cross": _cross,
    }
    corners = outlines[shape]()
    area, centroid = _area_and_centroid(corners)
    return (corners - centroid) * math.sqrt(math.pi / abs(area))


def _polygon(count: int, turn: float = 0.0, inner: float = 1.0) -> NDArray[np.float64]:
    """Return corners on a circle from the top on; every second one at `inner` of the radius."""
    angle = 2 * math.pi * (np.arange(count) + turn) / count
    radius = np.where(np.arange(count) % 2, inner, 1.0)
    corners: NDArray[np.float64] = np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=-1)
    return corners


def _heart() -> NDArray[np.float64]:
    t = np.linspace(0, 2 * math.pi, 96, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], axis=-1)


def _cross() -> NDArray[np.float64]:
    a, b = 1.0, 0.34  # half the length and half the width of an arm
    quarter = np.array([(b, -a), (b, -b), (a, -b)])
    turns = [np.array([[0, -1], [1, 0]]), np.array([[-1, 0], [0, -1]]), np.array([[0, 1], [-1, 0]])]
    return np.concatenate([quarter, *(quarter @ turn.T for turn in turns)])


def _area_and_centroid(corners: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    after = np.roll(corners, -1, axis=0)
    cross = corners[:, 0] * after[:, 1] - after[:, 0] * corners[:, 1]
    area = cross.sum() / 2
    return float(area), ((corners + after) * cross[:, None]).sum(axis=0) / (6 * area)


def _distances(corners: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the signed distance of `points` [..., 2] to a polygon: the nearest edge, negative by the even-odd rule."""
    nearest = np.full(points.shape[:-1], np.inf)
    inside = np.zeros(points.shape[:-1], dtype=bool)
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        edge, offset = end - start, points - start
        along = np.clip(offset @ edge / (edge @ edge), 0, 1)
        nearest = np.minimum(nearest, np.hypot(*np.moveaxis(offset - along[..., None] * edge, -1, 0)))
        crosses = (start[1] > points[..., 1]) != (end[1] > points[..., 1])
        height = edge[1] or np.inf
        inside ^= crosses & (offset[..., 0] < offset[..., 1] * edge[0] / height)
    return np.where(inside, -nearest, nearest)
