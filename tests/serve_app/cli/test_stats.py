"""`encore stats` and `models`."""

from __future__ import annotations

import json
from collections.abc import Callable

from starlette.responses import JSONResponse
from typer.testing import Result

from serve_app.api.wire_objects import model_object
from serve_app.model.families import load_family
from tests.serve_app.client.wire_server import World

Encore = Callable[..., Result]


def test_stats_shows_every_figure_once(encore: Encore, world: World) -> None:
    """Proves that nested counters become rows, numbers get separators and bytes a unit."""
    figures = {"model": "native/demo", "waiting": 0, "cache": {"l1": {"hit": 12345, "bytes": 3 * 2**20}}}
    world.failure = JSONResponse(figures)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in encore("stats").stdout.splitlines()]
    rows = [row for row in rows if row]
    assert rows == [
        ["this router", "model", "native/demo"],
        ["", "waiting", "0"],
        ["cache l1", "hit", "12,345"],
        ["", "bytes", "3.0 MiB"],
    ]
    assert json.loads(encore("stats", "--json").stdout) == figures


def test_stats_say_whose_they_are(encore: Encore, world: World) -> None:
    """Proves that the counts of one router of several do not read like the server's."""
    world.failure = JSONResponse({"router": {"id": "r1", "of": 3}, "waiting": 0})
    assert "the router that answered (r1), 1 of 3" in encore("stats").stdout
    world.failure = JSONResponse({"router": {"id": "r1", "of": None}, "waiting": 0})
    assert "the others could not be asked" in encore("stats").stdout


def test_models_shows_ranges_and_defaults(encore: Encore, world: World) -> None:
    """Proves that the table holds what the real card of the demo model says."""
    card = load_family("native/demo").card
    world.failure = JSONResponse({"object": "list", "data": [model_object(card)]})
    shown = encore("models").stdout
    rows = {cells[0].strip(): [cell.strip() for cell in cells[1:5]] for cells in _cells(shown)}
    frames, guidance = card.num_frames, card.guidance_scale
    assert rows["num_frames"] == [str(n) for n in (frames.minimum, frames.maximum, frames.step, frames.default)]
    assert rows["guidance_scale"] == [str(guidance.minimum), str(guidance.maximum), "", str(guidance.default)]
    assert card.name in shown
    assert json.loads(encore("models", "--json").stdout)["data"][0]["id"] == card.name


def test_a_model_that_tells_little_is_shown_too(encore: Encore) -> None:
    """Proves that another server's sparser answer is no error."""
    assert "native/demo" in encore("models").stdout


def _cells(table: str) -> list[list[str]]:
    return [line.split("│")[1:] for line in table.splitlines() if line.startswith("│")]
