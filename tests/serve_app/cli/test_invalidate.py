"""`encore invalidate`: by key as ever, and by what an option chooses."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import typer
from starlette.responses import JSONResponse
from typer.testing import Result

from serve_app.cli.invalidate import age_seconds
from tests.serve_app.client.wire_server import KEY, World

Encore = Callable[..., Result]


def test_invalidate_says_where_the_video_was(encore: Encore, world: World) -> None:
    """Proves that the key is sent and the tiers it was removed from are told, or that there were none."""
    assert encore("invalidate", KEY).stdout == "deleted from l2, l3\n"
    assert world.requests[-1][2] == {"key": KEY}
    assert json.loads(encore("invalidate", KEY, "--json").stdout) == {"key": KEY, "deleted": ["l2", "l3"]}
    world.failure = JSONResponse({"key": KEY, "deleted": []})
    assert encore("invalidate", KEY).stdout == "no tier had it\n"


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (["--key", KEY], {"key": KEY}),
        (["--prompt", "a red circle"], {"prompt": "a red circle"}),
        (["--prompt", "a red circle", "--model", "m"], {"prompt": "a red circle", "model": "m"}),
        (["--fingerprint", "f"], {"fingerprint": "f"}),
        (["--tag", "spring"], {"tag": "spring"}),
        (["--older-than", "3d"], {"older_than_seconds": 259_200.0}),
    ],
)
def test_each_option_arrives_under_its_wire_name(
    encore: Encore, world: World, options: list[str], sent: dict[str, Any]
) -> None:
    """Proves what is sent for each choice, and that the answer is told in a line and as JSON."""
    told = encore("invalidate", *options).stdout
    assert world.requests[-1][3] == sent
    assert told.startswith("invalidated: ")
    answer = json.loads(encore("invalidate", *options, "--json").stdout)
    assert (answer["epoch"], answer["deleted"]) == (7, {"l1": 2})


def test_what_is_not_known_is_told(encore: Encore, world: World) -> None:
    """Proves that a choice of nothing does not read like a success, and whose memory the counts are of."""
    rule = {"selector": "fingerprint", "before": 1.0}
    world.failure = JSONResponse({"rule": rule, "epoch": 7, "deleted": {"l1": 0}, "known": False})
    assert encore("invalidate", "--fingerprint", "f").stdout.endswith("; this server makes nothing by it now\n")
    world.failure = JSONResponse({"rule": rule, "epoch": 7, "deleted": {"l1": 3}, "known": True})
    assert "by the router that answered: 3 from l1" in encore("invalidate", "--fingerprint", "f").stdout


@pytest.mark.parametrize("options", [[], [KEY, "--tag", "spring"], ["--older-than", "soon"]])
def test_nothing_and_too_much_is_a_wrong_command_line(encore: Encore, world: World, options: list[str]) -> None:
    """Proves that neither no choice, nor a key and a choice, nor an age that is none, is sent anywhere."""
    assert encore("invalidate", *options).exit_code == 2
    assert not world.requests


def test_ages() -> None:
    """Proves the units of an age, and that seconds need none."""
    assert [age_seconds(text) for text in ("0", "90", "1.5m", "12h", "3d")] == [0, 90, 90, 43_200, 259_200]
    with pytest.raises(typer.BadParameter):
        age_seconds("-1")
