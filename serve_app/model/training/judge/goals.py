"""What the demo owes its users, as numbers: how often an attribute of the prompt must be in the video.

They hold for held-out combinations, half of them in held-out templates, at 16 steps or fewer; for a perfect denoiser
the oracle and the autoencoder must let it reach them, so those have goals too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from serve_app.model.training.judge.judge import ALL, Table

GOALS: Mapping[str, float] = {
    "shape": 0.90,
    "color": 0.98,
    "background": 0.98,
    "size": 0.95,
    "motion": 0.90,
    ALL: 0.80,
}
"""The least share of clips, by attribute; `all` is every attribute of a clip at once."""

CEILINGS: Mapping[str, float] = {"rendered": 0.99, "reconstructed": 0.97}
"""The least share of drawn clips, and of their reconstructions, that the oracle reads all right."""

MOST_STEPS = 16


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal beside what was reached."""

    name: str
    wanted: float
    share: float

    @property
    def met(self) -> bool:
        """Whether the share itself, not its interval, is high enough."""
        return self.share >= self.wanted


def model_goals(table: Table) -> Iterator[Goal]:
    """Yield the goals of the answers to all questions."""
    for name, wanted in GOALS.items():
        yield Goal("all five" if name == ALL else name, wanted, table.scores[name].share)


def size_goals(tables: Mapping[str, Table]) -> Iterator[Goal]:
    """Yield the goal of each other size that is offered: every attribute of a clip at once."""
    for size, table in tables.items():
        yield Goal(f"all five, {size}", GOALS[ALL], table.scores[ALL].share)


def ceiling_goals(tables: Mapping[str, Table]) -> Iterator[Goal]:
    """Yield the goals of the ceilings that could be measured."""
    for name, table in tables.items():
        yield Goal(f"ceiling, {name}", CEILINGS[name], table.scores[ALL].share)
