"""The goals: which shares meet them."""

from __future__ import annotations

from serve_app.model.training.judge.goals import GOALS, ceiling_goals, model_goals
from serve_app.model.training.judge.judge import Score, Table


def test_goals_look_at_the_share_alone() -> None:
    """Exactly the wanted share is enough, one clip less is not."""
    just = Table({name: Score(round(wanted * 100), 100) for name, wanted in GOALS.items()})
    under = Table({name: Score(round(wanted * 100) - 1, 100) for name, wanted in GOALS.items()})
    assert all(goal.met for goal in model_goals(just))
    assert not any(goal.met for goal in model_goals(under))
    assert [goal.name for goal in model_goals(just)][-1] == "all five"


def test_ceilings_have_goals_of_their_own() -> None:
    """Drawn clips need 99 of a hundred, reconstructions 97; one that was not measured has none."""
    tables = {"rendered": Table({"all": Score(98, 100)}), "reconstructed": Table({"all": Score(98, 100)})}
    assert [goal.met for goal in ceiling_goals(tables)] == [False, True]
    assert list(ceiling_goals({})) == []
