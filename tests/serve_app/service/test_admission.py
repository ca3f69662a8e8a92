"""Admission is one step: of many who ask at the same time as many are let in as there are places."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.cache.invalidation import sync
from serve_app.cache.invalidation.redis_rules import TooMany
from serve_app.errors import Busy
from serve_app.schema.invalidation import parse_invalidation
from serve_app.service.jobs.input_images import InputImages, MemoryInputImages
from serve_app.service.jobs.job import Job
from serve_app.service.jobs.store import MemoryJobs
from serve_app.service.jobs.tracker import JobTracker
from serve_app.service.warmup.warmup import MAX_RUNNING
from tests.serve_app.service.rig import TINY, Rig, a_job


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(tmp_path / "l3")
    yield made
    await made.aclose()


def templates(number: int) -> dict[str, Any]:
    return {"templates": [{"prompt": f"star {number}", **TINY}]}


async def test_thirty_warm_ups_at_once(rig: Rig) -> None:
    """Of thirty at the same time as many begin as may run, whatever each waits for before it runs."""
    service = rig.service()
    rig.renderer.hold()
    begun = await asyncio.gather(*(service.warming.begin(templates(n)) for n in range(30)), return_exceptions=True)
    assert sum(isinstance(each, Busy) for each in begun) == 30 - MAX_RUNNING
    assert service.warming.stats() == {"running": MAX_RUNNING}


async def test_a_refused_warm_up_leaves_its_place(rig: Rig) -> None:
    """Places that were taken for what could not begin are there again."""
    service = rig.service()
    rig.renderer.hold()
    bad = {"templates": [{"prompt": "star", "size": "33x33"}]}
    await asyncio.gather(*(service.warming.begin(bad) for _ in range(30)), return_exceptions=True)
    await asyncio.gather(*(service.warming.begin(templates(n)) for n in range(MAX_RUNNING)))


async def test_estimates_have_places_too(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dry runs plan as many videos as warm-ups do, so no more of them run at a time."""
    service = rig.service()
    go, where = asyncio.Event(), service.warming._cache.where

    async def slow(key: str) -> Any:
        await go.wait()
        return await where(key)

    monkeypatch.setattr(service.warming._cache, "where", slow)
    asked = [asyncio.ensure_future(service.warming.estimate(templates(n))) for n in range(30)]
    await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    go.set()
    done = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(each, Busy) for each in done) == 30 - MAX_RUNNING


async def test_invalidations_at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thirty invalidations at the same time as many are recorded as there may be; everything always is."""
    monkeypatch.setattr(sync, "MAX_RULES", 8)
    service = rig.service(rules=rig.rules())
    tries = await asyncio.gather(
        *(service.invalidate_where(parse_invalidation({"tag": f"t{n}"})) for n in range(30)), return_exceptions=True
    )
    refused = [each for each in tries if isinstance(each, TooMany)]
    assert len(refused) == 22
    assert (refused[0].status, "older_than_seconds" in refused[0].message) == (409, True)
    assert service._invalidator.stats()["rules"] == 8
    await service.invalidate_where(parse_invalidation({"older_than_seconds": 0}))
    assert service._invalidator.stats()["rules"] == 1


async def test_a_job_whose_image_is_being_kept_has_a_place() -> None:
    """From the step that found room a job counts, while its image is written, until it is accepted or refused."""

    class Slow(MemoryInputImages):
        go = asyncio.Event()

        async def keep(self, key: str, job_id: str, data: bytes, seconds: float) -> None:
            await self.go.wait()

    def never(job: Job) -> Any:
        raise AssertionError(job)

    tracker = JobTracker(MemoryJobs(), never, room=lambda: 0, ended=lambda job, flight_result: None)
    images = InputImages(Slow())

    async def refused() -> str:
        raise Busy("no place")

    waiting = asyncio.ensure_future(images.accepted(a_job(), b"image", refused, tracker.take_place()))
    await asyncio.sleep(0)
    assert len(tracker) == 1
    Slow.go.set()
    with pytest.raises(Busy):
        await waiting
    await asyncio.sleep(0)
    assert len(tracker) == 0
