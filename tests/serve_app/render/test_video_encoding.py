"""Frames become one stored file: whoever comes second with other bytes adopts the first."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from serve_app.cache.invalidation.rules import Labels, RuleBook
from serve_app.core import Frames, RenderRequest, Urgency
from serve_app.errors import RenderFailed
from serve_app.flight.record import FlightState, Joined, Leading
from serve_app.flight.redis_record import RedisFlightRecords
from serve_app.media import probe
from serve_app.model.families import load_family
from serve_app.render.video_encoding import VideoWriter
from serve_app.service.plan import Planner
from serve_app.telemetry import Encoded
from tests.conftest import ValkeyServer
from tests.serve_app.service.rig import SECRET, SMALLEST, TINY, Rig, ask

WIDTH, HEIGHT = map(int, SMALLEST.split("x"))


def a_request() -> RenderRequest:
    plan = Planner(load_family("native/demo"), "encoder", max_prompt_chars=100).plan(ask(**TINY))
    return RenderRequest(plan.spec, plan.keys, "fingerprint")


def frames(value: int) -> Frames:
    return np.full((8, HEIGHT, WIDTH, 3), value, np.uint8)


async def test_encoded_stored_and_told(tmp_path: Path) -> None:
    """The file is an MP4 of the spec's size and rate, in the folder, with metadata that explains it."""
    rig, request = Rig(tmp_path), a_request()
    finished = await VideoWriter(rig.cache(l1=False), rig.telemetry).finish(request, frames(90), 1.5)
    info = probe(finished.entry.data)
    assert (info.width, info.height, info.num_frames, info.fps) == (WIDTH, HEIGHT, 8, 16)
    assert (finished.stored, finished.render_seconds) == (("l3",), 1.5)
    assert finished.entry.meta["spec"]["width"] == WIDTH
    told = json.dumps(dict(finished.entry.meta))
    assert not [word for word in ("circle", *asdict(request.keys).values()) if word in told]
    found = await rig.cache().get(request.keys.video)
    assert found is not None
    assert found[0] == finished.entry
    assert [event.bytes for event in rig.events if isinstance(event, Encoded)] == [finished.entry.size]


async def test_earlier_bytes_are_adopted(tmp_path: Path) -> None:
    """A second render of one key whose pixels differ gives everybody the first one's file."""
    rig, request = Rig(tmp_path), a_request()
    first = await VideoWriter(rig.cache(l1=False), rig.telemetry).finish(request, frames(90), 1.0)
    second = await VideoWriter(rig.cache(l1=False), rig.telemetry).finish(request, frames(200), 1.0)
    assert second.entry == first.entry
    assert second.stored == ("l3",)


async def test_nothing_to_store_it_in() -> None:
    """Without a durable tier it is finished all the same, and says that nobody stored it."""
    rig = Rig(folder=None)
    finished = await VideoWriter(rig.cache(l1=False), rig.telemetry).finish(a_request(), frames(1), 1.0)
    assert finished.stored == ()


async def test_frames_that_are_none(tmp_path: Path) -> None:
    """Frames no encoder can take are a RenderFailed, and nothing is stored."""
    rig, request = Rig(tmp_path), a_request()
    with pytest.raises(RenderFailed):
        await VideoWriter(rig.cache(l1=False), rig.telemetry).finish(request, frames(1)[:, :31], 1.0)
    assert await rig.cache().get(request.keys.video) is None


async def test_a_late_holder_can_end_no_flight_and_bring_nothing_back(
    tmp_path: Path, valkey_server: ValkeyServer
) -> None:
    """Fenced off after its last look, it writes neither the record nor L2; what it leaves in L3 an invalidation covers.

    L3 takes a key once, so what lies there is an answer to whoever asks for the key, unless it was begun before an
    invalidation: then nobody is given it.
    """
    valkey_server.flush()
    rig = Rig(tmp_path, valkey_server.url)
    tier = rig.redis()
    assert tier is not None
    flights = RedisFlightRecords(tier, secret=SECRET, linger_seconds=1.0)
    rules = rig.rules()
    request = a_request()
    key = request.keys.video
    old = await flights.join_or_lead(key, "one", Urgency())
    assert isinstance(old, Leading)
    request = replace(request, token=old.token, begun_at=old.token)
    finisher = VideoWriter(rig.cache(l1=False), rig.telemetry, flights)

    async def overtaken(_: RenderRequest) -> None:  # between the last look and the write
        await rules.add("key", [rules.book.labels.of("key", key)])
        assert isinstance(await flights.join_or_lead(key, "two", Urgency(), given_up=old.token), Leading)

    finisher._check = overtaken  # type: ignore[method-assign]
    finished = await finisher.finish(request, frames(90), 1.0)
    assert finished.stored == ("l3",)
    news = await flights.look(key)
    assert news is not None
    assert (news.token > old.token, news.state) == (True, FlightState.WAITING)
    assert await rig.cache(l1=False, rules=RuleBook(Labels(SECRET))).get_l3(key) is not None
    assert await rig.cache(l1=False, rules=rules.book).get(key) is None
    assert isinstance(await flights.join_or_lead(key, "three", Urgency()), Joined)
    await flights.aclose()
    await rules.aclose()
    for pool in rig.pools:
        await pool.client.aclose()
