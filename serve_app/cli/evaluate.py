"""`encore evaluate`: ask a model for what it never saw, let the oracle look, compare with the goals.

The ceilings come first: an oracle that misreads drawn clips cannot judge generated ones. Where files go is checked
before anything is rendered, because a whole evaluation takes minutes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from serve_app.cli.output.destination import Save, opened
from serve_app.cli.output.evaluate_tables import print_evaluation, print_sheet, sheet_of
from serve_app.cli.output.progress import Bars, bars
from serve_app.errors import InvalidRequest, NotFound
from serve_app.model.native.native import NativeFamily, demo, from_folder
from serve_app.model.native.weights import Checkpoint
from serve_app.model.training import model_card
from serve_app.model.training.judge.goals import MOST_STEPS, Goal, ceiling_goals, model_goals, size_goals
from serve_app.model.training.judge.judge import ALL, Table, ceiling, tabulate
from serve_app.model.training.judge.questions import Question, questions

if TYPE_CHECKING:
    from torch import Tensor

    from serve_app.render.evaluation import Evaluation, RenderedQuestion

SHEET_ROWS = 24

GROUPS: Mapping[str, Callable[[Question], bool]] = {
    ALL: lambda question: True,
    "English": lambda question: question.language == "en",
    "Chinese": lambda question: question.language == "zh",
    "known templates": lambda question: not question.held_out_template,
    "held-out templates": lambda question: question.held_out_template,
}


@dataclass(frozen=True, slots=True)
class Round:
    """All questions at one number of steps; some answers, and a table for every group that has any."""

    tables: Mapping[str, Table]
    seconds_per_clip: float
    answers: Sequence[RenderedQuestion]


def evaluate_model(
    checkpoint: Path | None,
    *,
    count: int,
    steps: str,
    guidance: float | None,
    device: str,
    seed: int,
    sizes: str | None = None,
    json_file: str | None = None,
    sheet: str | None = None,
    card: bool = False,
) -> bool:
    """Print the tables, or with `json_file` "-" the figures; returns whether every goal is met.

    sizes: `48x48,96x96` or `all` that are offered, asked beside the model's default at the goal's steps.

    Raises NotFound for what is no checkpoint or has no card, BadParameter for steps, guidance or sizes that the model
    does not allow, InvalidRequest for what cannot be written and a device that is not here.
    """
    family = _family(checkpoint)
    rounds_of = _steps(steps, family)
    guidance = _guidance(guidance, family)
    others = _sizes(sizes, family)
    _check_device(device)
    with ExitStack() as stack:
        to_json, to_sheet = (_opened(stack, name) for name in (None if json_file == "-" else json_file, sheet))
        readme = _card(family) if card else None
        with bars() as shown:
            ceilings = _ceilings(family, count, seed, device, shown)
            goal_steps = max((each for each in rounds_of if each <= MOST_STEPS), default=None)
            evaluation = _evaluation(family, device)
            asked_for = questions(count, seed)
            rounds = {each: _round(evaluation, asked_for, each, guidance, shown) for each in rounds_of}
            by_size = {
                f"{width}x{height}": _round(
                    evaluation, asked_for, goal_steps or max(rounds_of), guidance, shown, (width, height)
                )
                for width, height in others
            }
        goals = [*ceiling_goals(ceilings), *(model_goals(rounds[goal_steps].tables[ALL]) if goal_steps else ())]
        goals += size_goals({size: each.tables[ALL] for size, each in by_size.items()})
        asked = {"model": family.card.name, "weights": family.weights.identity, "count": count, "seed": seed}
        figures = asked | {"guidance_scale": guidance, "device": device} | _figures(ceilings, rounds, goals, goal_steps)
        figures["sizes"] = {size: each.tables[ALL].as_dict() for size, each in by_size.items()}
        if json_file == "-":
            typer.echo(json.dumps(figures))
        else:
            print_evaluation(family.card.name, ceilings, rounds, goals, goal_steps, by_size)
        if to_json is not None:
            to_json((json.dumps(figures, indent=1) + "\n").encode(), "")
        if to_sheet is not None:
            answers = rounds[goal_steps or max(rounds)].answers
            to_sheet(sheet_of(answers), "")
            print_sheet(answers, quiet=json_file == "-")
        if readme is not None:
            readme.write_text(model_card.with_accuracy(readme.read_text("utf-8"), figures), "utf-8")
    return all(goal.met for goal in goals)


def _family(checkpoint: Path | None) -> NativeFamily:
    family = demo() if checkpoint is None else from_folder(checkpoint)
    if not isinstance(family, NativeFamily):
        raise NotFound(f"{family.card.name} has no checkpoint to judge.")
    return family


def _steps(text: str, family: NativeFamily) -> tuple[int, ...]:
    allowed = family.card.num_inference_steps
    try:
        found = tuple(sorted({int(each) for each in text.split(",")}))
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not like 4,8,16.", param_hint="--steps") from None
    if not all(each in allowed for each in found):
        raise typer.BadParameter(f"{allowed.minimum} to {allowed.maximum} steps, not {text}.", param_hint="--steps")
    return found


def _sizes(text: str | None, family: NativeFamily) -> tuple[tuple[int, int], ...]:
    card = family.card
    offered = card.sizes or ((card.width.default, card.height.default),)
    named = {f"{width}x{height}": (width, height) for width, height in offered}
    if text is None:
        return ()
    if text == "all":
        return tuple(size for size in offered if size != (card.width.default, card.height.default))
    try:
        return tuple(named[each.strip()] for each in text.split(","))
    except KeyError as error:
        message = f"{error.args[0]} is not offered; there are {', '.join(named)}."
        raise typer.BadParameter(message, param_hint="--sizes") from None


def _guidance(scale: float | None, family: NativeFamily) -> float:
    allowed = family.card.guidance_scale
    if scale is None:
        return allowed.default
    if scale not in allowed:
        message = f"{allowed.minimum:g} to {allowed.maximum:g}, not {scale:g}."
        raise typer.BadParameter(message, param_hint="--guidance")
    return scale


def _check_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidRequest("There is no CUDA device here.", param="device")


def _opened(stack: ExitStack, name: str | None) -> Save | None:
    return None if name is None else stack.enter_context(opened(name, force=True))


def _card(family: NativeFamily) -> Path:
    if not isinstance(family.weights, Checkpoint):
        raise NotFound(f"{family.card.name} has no checkpoint and no card.")
    path = family.weights.path.parent / model_card.FILE
    try:
        model_card.check(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise NotFound(f"{path} is no model card of `encore train`: {error}.") from error
    return path


def _ceilings(family: NativeFamily, count: int, seed: int, device: str, shown: Bars) -> dict[str, Table]:
    from serve_app.model.training.judge.reconstruction import reconstruction

    passes: dict[str, Callable[[Tensor], Tensor] | None] = {
        "rendered": lambda clip: clip,
        "reconstructed": reconstruction(family, family.load_decoder(device), device),
    }
    return {
        name: ceiling(count, seed, reconstruct=_counted(each, f"{name} clips", count, shown))
        for name, each in passes.items()
        if each is not None
    }


def _counted(reconstruct: Callable[[Tensor], Tensor], name: str, count: int, shown: Bars) -> Callable[[Tensor], Tensor]:
    done = 0

    def counted(clip: Tensor) -> Tensor:
        nonlocal done
        done += 1
        shown.show(name, done, count)
        return reconstruct(clip)

    return counted


def _evaluation(family: NativeFamily, device: str) -> Evaluation:
    from serve_app.render.evaluation import Evaluation

    return Evaluation(family, device=device)


def _round(
    evaluation: Evaluation,
    asked: Sequence[Question],
    steps: int,
    guidance: float,
    shown: Bars,
    size: tuple[int, int] | None = None,
) -> Round:
    def report(done: int, of: int) -> None:
        shown.show(f"{steps} steps" if size is None else f"{size[0]}x{size[1]}, {steps} steps", done, of)

    began = time.monotonic()
    answers = evaluation.ask(asked, steps, guidance_scale=guidance, size=size, report=report)
    kept = list(islice(answers, SHEET_ROWS))
    judged = [(answer.question, answer.verdict) for answer in kept]
    judged += [(answer.question, answer.verdict) for answer in answers]
    seconds = (time.monotonic() - began) / len(judged)
    groups = {name: [verdict for question, verdict in judged if belongs(question)] for name, belongs in GROUPS.items()}
    return Round({name: tabulate(verdicts) for name, verdicts in groups.items() if verdicts}, seconds, kept)


def _figures(
    ceilings: Mapping[str, Table], rounds: Mapping[int, Round], goals: Sequence[Goal], goal_steps: int | None
) -> dict[str, Any]:
    return {
        "ceiling": {name: table.as_dict() for name, table in ceilings.items()},
        "steps": {
            str(steps): {
                "seconds_per_clip": each.seconds_per_clip,
                "tables": {name: table.as_dict() for name, table in each.tables.items()},
            }
            for steps, each in rounds.items()
        },
        "goal_steps": goal_steps,
        "goals": [asdict(goal) | {"met": goal.met} for goal in goals],
    }
