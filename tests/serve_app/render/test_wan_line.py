"""A Wan checkpoint over the whole line without Ray: from a request to an MP4, with every cache on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.core import Outcome
from serve_app.errors import InvalidRequest, NotFound, Unprocessable
from serve_app.media import probe
from serve_app.model.model import Family
from serve_app.settings import Settings
from serve_app.wiring.model import default_spec, open_planner
from tests.serve_app.service.image_world import SMALL, family, local, settings
from tests.serve_app.service.local_renderer import LocalRenderer
from tests.serve_app.service.rig import Rig, ask

__all__ = ["family", "local", "settings"]  # fixtures


async def test_a_prompt_in_an_mp4_out(rig: Rig, local: LocalRenderer, family: Family) -> None:
    """The video has the asked form; a repeat is a hit, another seed finds the embedding, another rate the latents."""
    service = rig.service(renderer=local, family=family)
    first = await service.generate(ask("Please generate a video of a cat in Paris.", **SMALL))
    info = probe(first.entry.data)
    assert (info.width, info.height, info.num_frames, info.codec, info.fps) == (96, 64, 9, "h264", 24)
    assert (first.outcome, first.embedding) == (Outcome.RENDERED, "miss")
    assert (await service.generate(ask("a cat in Paris", **SMALL))).outcome is Outcome.L1
    other = await service.generate(ask("a cat in Paris", seed=7, **SMALL))
    assert (other.outcome, other.embedding) == (Outcome.RENDERED, "hit")
    assert other.entry.data != first.entry.data
    await local.latents.settled()
    assert (await service.generate(ask("a cat in Paris", fps=12, **SMALL))).outcome is Outcome.LATENTS


def test_the_model_decides_what_may_be_asked(settings: Settings) -> None:
    """Case is kept, the grid is the model's, and a request that leaves all to the model is on it."""
    planner = open_planner(settings)
    assert planner.plan(ask("A US flag", **SMALL)).spec.prompt == "A US flag"
    assert planner.plan(ask("A US flag", **SMALL)).keys != planner.plan(ask("a us flag", **SMALL)).keys
    with pytest.raises(Unprocessable, match="nearest 13 and 17"):
        planner.plan(ask(num_frames=16))
    with pytest.raises(Unprocessable, match="nearest 832 and 864"):
        planner.plan(ask(size="854x480"))
    with pytest.raises(Unprocessable, match="at most 512"):
        planner.plan(ask("z " * 600))
    spec = default_spec(planner.card)
    assert (spec.model, spec.size, spec.num_frames, spec.fps) == ("wan2.2-t2v-5b", "832x480", 81, 24)


def test_settings_that_lead_nowhere(settings: Settings, tmp_path: Path) -> None:
    """A folder without a checkpoint, and a checkpoint for another model, are refused before anything runs."""
    with pytest.raises(NotFound, match=r"model_index\.json cannot be read"):
        open_planner(settings.model_copy(update={"checkpoint": str(tmp_path)}))
    with pytest.raises(InvalidRequest, match="'checkpoint' is for wan2"):
        open_planner(settings.model_copy(update={"model": "native/demo"}))
