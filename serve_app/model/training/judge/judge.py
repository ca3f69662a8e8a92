"""The judge: do clips show what was asked, attribute by attribute, and how sure is the answer?

It compares scenes with what the oracle reads and counts; it loads no model and asks no prompt, so that the same
figures come from generated clips, from rendered ones and from an autoencoder's reconstructions of those. The latter
two are the ceiling: what the oracle itself, and the decoder, let a perfect denoiser reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from serve_app.core import Frames
from serve_app.model.training.judge import oracle
from serve_app.model.training.world import world
from serve_app.model.training.world.world import Scene

ALL = "all"
"""The row of a table that counts the clips with every asked attribute right."""

_ALIKE_FOR_CIRCLES = frozenset({"rotate", "still"})
_Z = 1.959964  # the normal distribution's 97.5 % point
_CLIPS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Verdict:
    """One clip: the scene that was asked for and the one the oracle saw."""

    asked: Scene
    seen: Scene

    @property
    def met(self) -> Mapping[str, bool]:
        """Whether each attribute that was asked for is there; see `matches`."""
        return matches(self.asked, self.seen)


@dataclass(frozen=True, slots=True)
class Score:
    """`correct` of `n` clips, n at least 1."""

    correct: int
    n: int

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.correct / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the share."""
        return wilson_interval(self.correct, self.n)

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return {"correct": self.correct, "n": self.n, "share": self.share, "interval": list(self.interval)}


@dataclass(frozen=True, slots=True)
class Table:
    """A score per attribute that any clip was asked for, in the world's order, then `all`; empty without clips."""

    scores: Mapping[str, Score]

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return {name: score.as_dict() for name, score in self.scores.items()}


def judge(asked: Scene, frames: Frames | Tensor) -> Verdict:
    """Look at one clip, uint8 RGB [num_frames, 64, 64, 3]."""
    return Verdict(asked, oracle.read(frames))


def matches(asked: Scene, seen: Scene) -> dict[str, bool]:
    """Tell for each attribute that `asked` does not leave open whether `seen` has it.

    A circle that rotates looks like one that rests: where a circle was asked for, `rotate` and `still` are the same.
    """
    wanted = {attribute: value for attribute, value in asdict(asked).items() if value is not None}
    met = {attribute: getattr(seen, attribute) == value for attribute, value in wanted.items()}
    if asked.shape == "circle" and asked.motion in _ALIKE_FOR_CIRCLES:
        met["motion"] = seen.motion in _ALIKE_FOR_CIRCLES
    return met


def tabulate(verdicts: Iterable[Verdict]) -> Table:
    """Count the verdicts; an attribute counts only for the clips that were asked for it."""
    rows = [verdict.met for verdict in verdicts]
    by_name = {name: [row[name] for row in rows if name in row] for name in world.ATTRIBUTES}
    by_name[ALL] = [all(row.values()) for row in rows]
    return Table({name: Score(sum(met), len(met)) for name, met in by_name.items() if met})


def ceiling(
    count: int, seed: int, *, reconstruct: Callable[[Tensor], Tensor] | None = None, num_frames: int = 16
) -> Table:
    """Score the oracle on `count` rendered clips of scenes from both sides of the split; equal seeds, equal clips.

    `reconstruct` takes and returns a clip, uint8 [num_frames, 64, 64, 3], say through an autoencoder and back.
    """
    rng = np.random.default_rng(seed)
    every = world.scenes(held_out=False) + world.scenes(held_out=True)
    asked = [every[i] for i in rng.integers(len(every), size=count)]
    verdicts = []
    for start in range(0, count, _CLIPS_AT_ONCE):
        batch = asked[start : start + _CLIPS_AT_ONCE]
        for scene, clip in zip(batch, world.render(batch, rng, num_frames), strict=True):
            verdicts.append(judge(scene, clip if reconstruct is None else reconstruct(clip)))
    return tabulate(verdicts)


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share (Wilson, 1927), within [0, 1]; `n` is at least 1."""
    share, spread = correct / n, _Z**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return (0.0 if correct == 0 else centre - half, 1.0 if correct == n else centre + half)
