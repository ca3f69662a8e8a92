"""The README.md of a checkpoint: what it was trained on and how, what it can and cannot, in Hugging Face's form.

Every number comes from the world, the recipe and the record of the run that made the weights, so the card cannot tell
of another run. Accuracy is not known when a run ends: `encore evaluate --card` fills that section in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from serve_app.model.native.config import NativeConfig
from serve_app.model.training.judge.judge import ALL
from serve_app.model.training.recipe import Recipe, Schedule
from serve_app.model.training.record import Record
from serve_app.model.training.world import captions, prompts, world

FILE = "README.md"
BEGIN, END = "<!-- accuracy: encore evaluate -->", "<!-- /accuracy -->"
_UNKNOWN = f"{BEGIN}\nNot measured yet: `encore evaluate --card` fills this in.\n{END}"

_FRONT = """---
license: apache-2.0
language:
- en
- zh
library_name: encore-video
pipeline_tag: text-to-video
tags:
- flow-matching
- procedural-data
---
"""

_LIMITS = """- It knows nothing outside its world: other words are ignored at best; such prompts give some moving shape.
- One shape, one motion, one background: counts, several objects, negation and the order of events mean nothing to it.
- It was trained at {width}x{height} pixels and makes that alone; other sizes are that clip, scaled.
- Lengths were {lengths} frames.
- English and Chinese only: captions in other languages were never seen.
- It is a demonstration for tests and laptops. It shows no people and no real things, and it must not be taken for a
  measure of what its architecture can do."""

_PARTS = {
    "text_encoder": "text encoder (CLIP's text transformer)",
    "denoiser": "denoiser",
    "decoder": "frame decoder",
    "encoder": "frame encoder (for the judge; serving does not load it)",
}


def model_card(config: NativeConfig, recipe: Recipe, record: Record, sizes: Mapping[str, tuple[int, int]]) -> str:
    """Return the card's Markdown; `sizes` holds (parameters, bytes) of each part, see `sizes`."""
    lengths = ", ".join(str(frames) for frames in sorted(recipe.clips))
    sections = {
        "Data": _data(recipe),
        "Sizes": _sizes(sizes),
        "Training": _training(recipe, record),
        "Accuracy": _UNKNOWN,
        "Limits": _LIMITS.format(width=config.width, height=config.height, lengths=lengths),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"{_FRONT}\n# native/{config.name}\n\n{_summary(config)}\n\n{body}\n"


def sizes(weights: Path) -> dict[str, tuple[int, int]]:
    """Return (values, bytes) of each part in a safetensors file, in a fixed order; buffers count too."""
    from safetensors import safe_open

    found: dict[str, tuple[int, int]] = dict.fromkeys(_PARTS, (0, 0))
    with safe_open(weights, framework="np") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            part, piece = name.partition(".")[0], file.get_slice(name)
            count = math.prod(piece.get_shape())
            values, size = found[part]
            found[part] = (values + count, size + count * int(piece.get_dtype().lstrip("BFIU")) // 8)
    return found


def with_accuracy(card: str, figures: Mapping[str, Any]) -> str:
    """Return the card with its accuracy section replaced by an evaluation's figures; ValueError without markers."""
    check(card)
    before, _, rest = card.partition(BEGIN)
    return f"{before}{BEGIN}\n{_accuracy(figures)}\n{END}{rest.partition(END)[2]}"


def check(card: str) -> None:
    """Raise ValueError when a card has no section for accuracy."""
    if END not in card.partition(BEGIN)[2]:
        raise ValueError(f"it has no section between {BEGIN} and {END}")


def _summary(config: NativeConfig) -> str:
    return (
        "A text-to-video model of Encore's native architecture: CLIP-style text encoder, latent denoiser trained by\n"
        f"flow matching, per-frame autoencoder; {config.width}x{config.height} pixels. `encore train` made it,\n"
        "`encore serve` runs it and `encore evaluate` judges it."
    )


def _data(recipe: Recipe) -> str:
    held_out, seen = len(world.scenes(held_out=True)), len(world.scenes(held_out=False))
    values = "\n".join(f"- {name}: {', '.join(values)}" for name, values in world.ATTRIBUTES.items())
    templates = "; ".join(
        f"{language}: {len(set(captions.templates(language)))} for training, "
        f"{len(captions.templates(language, held_out=True))} held out"
        for language in captions.LANGUAGES
    )
    return f"""All data is drawn by this project's own program (`serve_app/model/training/world/world.py`); no other
pictures, videos or texts are in it, but for common words of an English dictionary. A clip shows one
anti-aliased shape that moves in one way before one background:

{values}

Captions come from templates and synonyms in English and Chinese (templates in {templates}).
{prompts.OPEN:.0%} of them leave attributes open and {prompts.FILLED:.0%} carry words that mean nothing here.
Of {seen + held_out:,} combinations {held_out:,} are held out: training never draws them, and the judge asks for
nothing else, half of the time in templates that were held out too.

The tokenizer, a byte-level BPE, was learnt from {recipe.captions:,} captions and that dictionary."""


def _sizes(sizes: Mapping[str, tuple[int, int]]) -> str:
    rows = [(_PARTS[part], f"{count:,}", f"{size / 1e6:.2f} MB") for part, (count, size) in sizes.items()]
    counts, total = zip(*sizes.values(), strict=True)
    return _table(("part", "values", "float16"), [*rows, ("all", f"{sum(counts):,}", f"{sum(total) / 1e6:.2f} MB")])


def _training(recipe: Recipe, record: Record) -> str:
    stages = {
        "autoencoder": (recipe.autoencoder, "frames or crops"),
        "text encoder": (recipe.text_encoder, "pairs of prompts"),
        "denoiser": (recipe.denoiser, "clips"),
    }
    columns = ("stage", "steps", "batch", "learning rate", "warm-up", "decay", "weight decay", "average")
    rows = [(name, *_schedule(schedule, kind)) for name, (schedule, kind) in stages.items()]
    clips = ", ".join(f"{count:,} of {frames} frames" for frames, count in recipe.clips.items())
    crops = f"{recipe.crop_share:.0%} of the steps on crops of {recipe.crop} pixels around edges"
    spent = "not recorded" if record.seconds is None else f"{record.seconds:,.0f} s"
    workers = record.facts["workers"]
    muon = [name for name, (schedule, _) in stages.items() if schedule.muon]
    return f"""{_table(columns, rows)}

- Seed {recipe.seed}; AdamW (0.9, 0.99), gradients clipped to norm 1, bfloat16 autocast.
- Muon in AdamW's place for the hidden matrices of: {", ".join(muon) or "no stage"}.
- What is kept of each stage is the exponential moving average of its weights.
- Autoencoder: L1 + 3 * MSE, latent noise {recipe.latent_noise:g}, {crops}.
- Text encoder: InfoNCE between two prompts of one scene, and the value of every attribute, before any video.
- Denoiser: velocity of the flow on cached latents ({clips}).
- Noise levels: logits of mean {recipe.noise_mean:g}, deviation {recipe.noise_deviation:g}.
- {recipe.caption_dropout:.0%} of the denoiser's prompts are empty.
- Hardware: {"; ".join(record.hardware)}; {workers} worker{"s" if workers > 1 else ""}. Time: {spent}."""


def _schedule(schedule: Schedule, kind: str) -> tuple[str, ...]:
    return (
        f"{schedule.steps:,}",
        f"{schedule.batch} {kind}",
        f"{schedule.learning_rate:g}",
        f"{schedule.warmup:,}",
        f"{schedule.decay:,}",
        f"{schedule.weight_decay:g}",
        f"{schedule.ema_decay:g}",
    )


def _accuracy(figures: Mapping[str, Any]) -> str:
    return "\n\n".join(_accuracy_parts(figures))


def _accuracy_parts(figures: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{figures['count']} prompts (seed {figures['seed']}) for held-out combinations, guidance "
        f"{figures['guidance_scale']:g}; an oracle that sees pixels only judges. In brackets: 95% Wilson intervals."
    )
    yield _scores({f"{steps} steps": each["tables"]["all"] for steps, each in figures["steps"].items()})
    ceiling = {f"ceiling: {name}": table for name, table in figures["ceiling"].items() if table}
    groups = figures["steps"].get(str(figures["goal_steps"]), {"tables": {}})["tables"]
    yield _scores({name: table for name, table in groups.items() if name != ALL} | ceiling)
    if figures["goal_steps"] is not None:
        yield (
            f"The groups are those at {figures['goal_steps']} steps; ceilings are the oracle on drawn clips and on the "
            "autoencoder's reconstructions of them."
        )
    goals = [
        f"- {'met' if goal['met'] else 'not met'}: {goal['name']} {goal['share']:.1%}, wanted {goal['wanted']:.0%}"
        for goal in figures["goals"]
    ]
    if goals:
        yield "\n".join(goals)


def _scores(columns: Mapping[str, Mapping[str, Any]]) -> str:
    names = [*world.ATTRIBUTES, ALL]
    rows = [(name, *(_share(table.get(name)) for table in columns.values())) for name in names]
    return _table(("", *columns), rows)


def _share(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return ""
    low, high = score["interval"]
    return f"{score['share']:.1%} ({low:.1%} to {high:.1%})"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
