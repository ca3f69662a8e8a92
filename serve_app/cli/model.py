"""`encore model`: what an architecture weighs, computes and at least takes, counted here without weights or a server.

What it says of a claim about speed and memory is read off the same cases as the tables, so it follows the architecture.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import typer

from serve_app.cli.output.model_tables import print_model
from serve_app.errors import NotFound
from serve_app.model.families import load_family
from serve_app.model.native.config import DEMO, FIVE_B
from serve_app.model.roofline import PRECISIONS, STEPS, Claim, Roofline, Sizing, Work, rooflines
from serve_app.model.wan.checkpoint.published import ARCHITECTURES

PRESETS = {f"native/{preset.name}": preset for preset in (DEMO, FIVE_B)}
FRAMES = (8, 16, 24)
WAN_FRAMES = (17, 81)
"""The usual length on the model's grid, and the one that WanPipeline makes unless it is told another."""
BATCHES = (1, 2, 3, 4)
EFFICIENCIES = (1.0, 0.5)
CLAIM = Claim("2 to 4 s on a 3090 under 10 GB, batch 1 to 4", card="RTX 3090", seconds=4.0, gigabytes=10.0)


def show_model(name: str, *, as_json: bool) -> None:
    """Print the figures of an architecture; NotFound names the known ones. Imports torch and transformers."""
    model = _known(name)
    sizing, lengths = _sizing(model)
    served = model in ARCHITECTURES or _is_served(model)
    works = [work for frames in lengths for work in sizing.works(frames, BATCHES)]
    cases = [] if model == f"native/{DEMO.name}" else list(rooflines(works))  # the claim is not about that one
    if as_json:
        figures = {"model": model, "served": served} | _figures(sizing, works)
        typer.echo(json.dumps(figures | (_judgement(cases) if cases else {})))
    else:
        print_model(model, served, sizing, works, cases, CLAIM, EFFICIENCIES)


def _known(name: str) -> str:
    names = {name: model for model, preset in PRESETS.items() for name in (model, f"encore-{preset.name}")}
    names |= {model: model for model in ARCHITECTURES}
    if name not in names:
        known = ", ".join(dict.fromkeys(names.values()))
        raise NotFound(f"There is no architecture '{name}'; known: {known}.", param="model")
    return names[name]


def _sizing(model: str) -> tuple[Sizing, Sequence[int]]:
    if model in ARCHITECTURES:
        from serve_app.model.wan.sizing import WanSizing

        return WanSizing(ARCHITECTURES[model]), WAN_FRAMES
    from serve_app.model.native.sizing import Sizing as NativeSizing

    return NativeSizing(PRESETS[model]), FRAMES


def _is_served(model: str) -> bool:
    try:
        return load_family(model).card.name == model
    except NotFound:
        return False


def _figures(sizing: Sizing, works: Sequence[Work]) -> dict[str, Any]:
    parameters = sizing.parameters()
    return {
        "width": sizing.size[0],
        "height": sizing.size[1],
        "parameters": parameters | {"all": sum(parameters.values())},
        "elsewhere": list(works[0].elsewhere),
        "weight_bytes": {precision: works[0].weight_bytes(precision) for precision in PRECISIONS},
        "encode_prompt": asdict(works[0].encode_prompt),
        "lengths": [
            {
                "frames": work.frames,
                "latents": sizing.latent_shape(work.frames),
                "tokens": sizing.tokens(work.frames),
                "pass_flops": work.pass_flops,
                "video_flops": {steps: work.video_flops(steps) for steps in STEPS},
                "decode": asdict(work.decode),
            }
            for work in works
            if work.batch == 1
        ],
        "batches": [
            {
                "frames": work.frames,
                "batch": work.batch,
                "denoise": asdict(work.denoise),
                "memory_bytes": {precision: work.memory_bytes(precision) for precision in PRECISIONS},
            }
            for work in works
        ],
    }


def _judgement(cases: Sequence[Roofline]) -> dict[str, Any]:
    def kinds(found: list[tuple[str, int]]) -> list[dict[str, Any]]:
        return [{"precision": precision, "steps": steps} for precision, steps in found]

    return {
        "rooflines": [asdict(case) | {"clip_seconds": case.clip_seconds} for case in cases],
        "claim": asdict(CLAIM),
        "kept": [
            {
                "efficiency": share,
                "everywhere": kinds(CLAIM.everywhere(cases, share)),
                "everywhere_by_the_batch": kinds(CLAIM.everywhere(cases, share, whole_batch=True)),
                "cases": [
                    {name: getattr(case, name) for name in ("precision", "steps", "frames", "batch")}
                    for case in CLAIM.kept(cases, share)
                ],
            }
            for share in EFFICIENCIES
        ],
    }
