"""Frames become one stored file: whoever comes second with other bytes adopts the first."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from serve_app.core import Frames, RenderRequest
from serve_app.errors import RenderFailed
from serve_app.media.probe import probe
from serve_app.model.model import load_family
from serve_app.service.finishing import Finisher
from serve_app.service.plan import Planner
from serve_app.telemetry import Encoded
from tests.serve_app.service.rig import TINY, Rig, ask


def a_request() -> RenderRequest:
    plan = Planner(load_family("native/demo"), "encoder", max_prompt_chars=100).plan(ask(**TINY))
    return RenderRequest(plan.spec, plan.keys, "fingerprint")


def frames(value: int) -> Frames:
    return np.full((8, 32, 32, 3), value, np.uint8)


async def test_encoded_stored_and_told(tmp_path: Path) -> None:
    """The file is an MP4 of the spec's size and rate, in the folder, with metadata that explains it."""
    rig, request = Rig(tmp_path), a_request()
    finished = await Finisher(rig.cache(l1=False), rig.telemetry).finish(request, frames(90), 1.5)
    info = probe(finished.entry.data)
    assert (info.width, info.height, info.num_frames, info.fps) == (32, 32, 8, 16)
    assert (finished.stored, finished.render_seconds) == (("l3",), 1.5)
    assert finished.entry.meta["spec"]["width"] == 32
    told = json.dumps(dict(finished.entry.meta))
    assert not [word for word in ("circle", *asdict(request.keys).values()) if word in told]
    found = await rig.cache().get(request.keys.video)
    assert found is not None
    assert found[0] == finished.entry
    assert [event.bytes for event in rig.events if isinstance(event, Encoded)] == [finished.entry.size]


async def test_earlier_bytes_are_adopted(tmp_path: Path) -> None:
    """A second render of one key whose pixels differ gives everybody the first one's file."""
    rig, request = Rig(tmp_path), a_request()
    first = await Finisher(rig.cache(l1=False), rig.telemetry).finish(request, frames(90), 1.0)
    second = await Finisher(rig.cache(l1=False), rig.telemetry).finish(request, frames(200), 1.0)
    assert second.entry == first.entry
    assert second.stored == ("l3",)


async def test_nothing_to_store_it_in() -> None:
    """Without a durable tier it is finished all the same, and says that nobody stored it."""
    rig = Rig(folder=None)
    finished = await Finisher(rig.cache(l1=False), rig.telemetry).finish(a_request(), frames(1), 1.0)
    assert finished.stored == ()


async def test_frames_that_are_none(tmp_path: Path) -> None:
    """Frames no encoder can take are a RenderFailed, and nothing is stored."""
    rig, request = Rig(tmp_path), a_request()
    with pytest.raises(RenderFailed):
        await Finisher(rig.cache(l1=False), rig.telemetry).finish(request, frames(1)[:, :31], 1.0)
    assert await rig.cache().get(request.keys.video) is None
