"""The story of one request over real tiers and a steered renderer: outcomes, sharing, failures and limits."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serve_app.core import Outcome, Priority, Urgency
from serve_app.errors import Busy, InvalidRequest, NotFound, RenderCancelled, RenderFailed, Unavailable
from serve_app.service.jobs import tracker
from serve_app.telemetry import Answered
from tests.serve_app.service.rig import Rig, ask, ended, until


async def test_rendered_then_l1_then_l3(rig: Rig) -> None:
    """First rendered, then from memory; another router finds it in the folder; all have the same bytes and key."""
    service = rig.service()
    first = await service.generate(ask())
    again = await service.generate(ask("  A RED circle moves left!! "))
    elsewhere = await rig.service().generate(ask())
    assert [first.outcome, again.outcome, elsewhere.outcome] == [Outcome.RENDERED, Outcome.L1, Outcome.L3]
    assert len({(answer.entry.data, answer.keys.video) for answer in (first, again, elsewhere)}) == 1
    assert first.stored
    assert (first.embedding, again.embedding) == ("miss", None)
    assert rig.renderer.asked == [first.keys.video]


async def test_whether_bytes_depend_on_company_is_told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The renderer says it once, and until it can, nobody is held up and nothing is claimed."""
    service = rig.service()
    answers: list[dict[str, object]] = [{}, {"batch_invariant": False}]

    async def stats() -> dict[str, object]:
        return answers.pop(0)

    async def never() -> dict[str, object]:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(rig.renderer, "stats", never)
    assert (await service.explain(ask()))["batch_invariant"] is None
    monkeypatch.setattr(rig.renderer, "stats", stats)
    assert [(await service.explain(ask()))["batch_invariant"] for _ in range(3)] == [None, False, False]


async def test_l2(shared_rig: Rig) -> None:
    """With a Redis, another router finds the video there."""
    await shared_rig.service().generate(ask())
    answer = await shared_rig.service().generate(ask())
    assert answer.outcome is Outcome.L2


async def test_joined(rig: Rig) -> None:
    """Who asks while it is being rendered waits for the same render: one leads, the others joined."""
    rig.renderer.hold()
    service = rig.service()
    waiters = [asyncio.create_task(service.generate(ask())) for _ in range(5)]
    await until(lambda: bool(rig.renderer.asked))
    rig.renderer.allow()
    answers = await asyncio.gather(*waiters)
    assert sorted(answer.outcome for answer in answers) == ["joined"] * 4 + ["rendered"]
    assert len(rig.renderer.asked) == 1
    assert (await service.stats())["outcomes"] == {"rendered": 1, "joined": 4}


async def test_whoever_waits_for_a_look_up_tells_the_tier(rig: Rig) -> None:
    """Requests that share a flight which only looked in a tier were hits, not joins."""
    await rig.service().generate(ask())
    service = rig.service()
    answers = await asyncio.gather(*(service.generate(ask()) for _ in range(3)))
    assert {answer.outcome for answer in answers} == {Outcome.L3}


async def test_an_l1_hit_awaits_nothing(rig: Rig) -> None:
    """A hit in memory is answered within the caller's own step of the event loop."""
    service = rig.service()
    await service.generate(ask())
    coroutine = service.generate(ask())
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    assert done.value.value.outcome is Outcome.L1


async def test_the_leaders_disconnect_does_not_end_it_for_the_others(rig: Rig) -> None:
    """The leader is cancelled mid-render; the follower still gets the video of that one render."""
    rig.renderer.hold()
    service = rig.service()
    leader = asyncio.create_task(service.generate(ask()))
    await until(lambda: bool(rig.renderer.asked))
    follower = asyncio.create_task(service.generate(ask()))
    await asyncio.sleep(0)
    leader.cancel()
    await asyncio.sleep(0.1)  # longer than the linger
    rig.renderer.allow()
    assert (await follower).outcome is Outcome.JOINED
    assert leader.cancelled()
    assert rig.renderer.cancelled == []
    assert len(rig.renderer.asked) == 1


async def test_the_last_ones_leaving_lingers_then_cancels(rig: Rig) -> None:
    """When nobody waits any more the render goes on for the linger and is then cancelled at the renderer."""
    rig.renderer.hold()
    service = rig.service(linger_seconds=0.5)
    waiter = asyncio.create_task(service.generate(ask()))
    await until(lambda: bool(rig.renderer.asked))
    waiter.cancel()
    await asyncio.sleep(0.03)
    assert rig.renderer.cancelled == []
    await until(lambda: rig.renderer.cancelled == rig.renderer.asked)
    await until(lambda: len(service._loader) == 0)
    assert (await service.stats())["waiting"] == 0


async def test_who_comes_back_within_the_linger_keeps_it_alive(rig: Rig) -> None:
    """A client that reconnects within the linger joins the render it left."""
    rig.renderer.hold()
    service = rig.service(linger_seconds=0.5)
    waiter = asyncio.create_task(service.generate(ask()))
    await until(lambda: bool(rig.renderer.asked))
    waiter.cancel()
    await asyncio.sleep(0.03)
    back = asyncio.create_task(service.generate(ask()))
    await asyncio.sleep(0.6)
    rig.renderer.allow()
    assert (await back).outcome is Outcome.JOINED
    assert len(rig.renderer.asked) == 1


@pytest.mark.parametrize("failure", [RenderFailed("no kernel"), ValueError("a bug")], ids=["mapped", "unmapped"])
async def test_a_failure_reaches_everybody_once_and_is_not_stored(rig: Rig, failure: Exception) -> None:
    """Each waiter gets the failure of the one render; the next request renders anew and succeeds."""
    rig.renderer.hold()
    rig.renderer.failure = failure
    service = rig.service()
    waiters = [asyncio.create_task(service.generate(ask())) for _ in range(3)]
    await until(lambda: bool(rig.renderer.asked))
    rig.renderer.allow()
    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert results == [failure] * 3
    assert len(rig.renderer.asked) == 1
    rig.renderer.failure = None
    assert (await service.generate(ask())).outcome is Outcome.RENDERED
    assert (await service.stats())["outcomes"] == {"failed": 3, "rendered": 1}
    assert [event.outcome for event in rig.events if isinstance(event, Answered)] == ["failed"] * 3 + ["rendered"]


async def test_another_routers_cancel_does_not_take_our_render(rig: Rig) -> None:
    """A render that was cancelled from elsewhere while somebody waits here is begun again, once."""
    rig.renderer.hold()
    service = rig.service()
    waiter = asyncio.create_task(service.generate(ask()))
    await until(lambda: bool(rig.renderer.asked))
    await rig.renderer.cancel(rig.renderer.asked[0])
    await until(lambda: len(rig.renderer.asked) == 2)
    rig.renderer.allow()
    assert (await waiter).outcome is Outcome.RENDERED


async def test_cancelled_twice_is_told(rig: Rig) -> None:
    """A render that is cancelled again is given up with RenderCancelled, not tried for ever."""
    rig.renderer.hold()
    waiter = asyncio.create_task(rig.service().generate(ask()))
    for attempt in (1, 2):
        await until(lambda attempt=attempt: len(rig.renderer.asked) == attempt)
        await rig.renderer.cancel(rig.renderer.asked[0])
    with pytest.raises(RenderCancelled):
        await waiter


async def test_max_queued(rig: Rig) -> None:
    """With every place taken a new video is Busy with Retry-After; joins, memory and what tiers have still answer."""
    await rig.service().generate(ask("in the folder"))
    service = rig.service(max_queued=1)
    await service.generate(ask("in memory"))
    rig.renderer.hold()
    waiter = asyncio.create_task(service.generate(ask("slow")))
    await until(lambda: len(rig.renderer.asked) == 3)
    for refused in (service.generate, service.jobs.submit):
        with pytest.raises(Busy) as busy:
            await refused(ask("another"))
        assert busy.value.retry_after is not None
        assert busy.value.retry_after >= 1
    joiner = asyncio.create_task(service.generate(ask("slow")))
    job = await service.jobs.submit(ask("slow"))
    assert (await service.generate(ask("in memory"))).outcome is Outcome.L1
    assert (await service.generate(ask("in the folder"))).outcome is Outcome.L3
    rig.renderer.allow()
    assert (await waiter).outcome is Outcome.RENDERED
    assert (await joiner).outcome is Outcome.JOINED
    assert (await ended(service, job)).outcome is Outcome.JOINED
    assert (await service.generate(ask("another"))).outcome is Outcome.RENDERED


async def test_a_job_for_what_a_tier_has_is_complete_even_when_full(rig: Rig) -> None:
    """With every place taken, a job for a video that the folder has is accepted, and completed already."""
    await rig.service().generate(ask("in the folder"))
    service = rig.service(max_queued=1)
    rig.renderer.hold()
    waiter = asyncio.create_task(service.generate(ask("slow")))
    await until(lambda: len(rig.renderer.asked) == 2)
    job = await service.jobs.submit(ask("in the folder"))
    assert (job.status, job.outcome) == ("completed", Outcome.L3)
    assert (await service.jobs.content(job.id))[2] is Outcome.L1
    rig.renderer.allow()
    await waiter


async def test_max_waiting(rig: Rig) -> None:
    """At most so many requests wait, and as many jobs; one more of either is Busy, hits in memory are not."""
    service = rig.service(max_waiting=2)
    await service.generate(ask("in memory"))
    rig.renderer.hold()
    waiters = [asyncio.create_task(service.generate(ask("slow"))) for _ in range(2)]
    await until(lambda: len(rig.renderer.asked) == 2)
    with pytest.raises(Busy):
        await service.generate(ask("slow"))
    jobs = [await service.jobs.submit(ask("slow")) for _ in range(2)]
    with pytest.raises(Busy):
        await service.jobs.submit(ask("slow"))
    assert (await service.generate(ask("in memory"))).outcome is Outcome.L1
    assert (await service.jobs.submit(ask("in memory"))).outcome is Outcome.L1
    rig.renderer.allow()
    await asyncio.gather(*waiters)
    for job in jobs:
        await ended(service, job)
    assert (await service.generate(ask("another"))).outcome is Outcome.RENDERED


@pytest.fixture
async def bare() -> Rig:
    return Rig(folder=None)


async def test_no_durable_tier(bare: Rig) -> None:
    """Without a durable tier a sync answer is marked unstored, also from memory, and a job is Unavailable."""
    service = bare.service()
    first, again = await service.generate(ask()), await service.generate(ask())
    assert [(answer.outcome, answer.stored) for answer in (first, again)] == [("rendered", False), ("l1", False)]
    for prompt in ("a red circle moves left", "another"):
        with pytest.raises(Unavailable) as unavailable:
            await service.jobs.submit(ask(prompt))
        assert unavailable.value.retry_after is not None
    await service.aclose()


async def test_unstored_is_stored_when_a_tier_is_back(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A job whose video no tier takes goes on, for an hour at most; when the tier is back it stores and completes."""
    monkeypatch.setattr(tracker, "UNSTORED_PAUSES", (0.01, 0.01))
    service = rig.service()
    objects = tmp_path / "l3" / "objects"
    objects.rmdir()
    objects.write_text("in the way")
    answer = await service.generate(ask())
    assert (answer.outcome, answer.stored) == (Outcome.RENDERED, False)
    with pytest.raises(Unavailable):  # the renderer's process found out; this one believes it
        await service.jobs.submit(ask())
    rig.clock.now += 5  # worth another try
    given_up = await service.jobs.submit(ask())
    await until(lambda: "trying again" in caplog.text)
    rig.clock.now += tracker.UNSTORED_SECONDS
    failed = await ended(service, given_up)
    assert (failed.status, failed.error_code) == ("failed", "not_stored")
    assert not (await service.generate(ask())).stored
    with pytest.raises(Unavailable):
        await service.jobs.submit(ask())
    rig.clock.now += 5
    accepted = await service.jobs.submit(ask())
    objects.unlink()
    objects.mkdir(exist_ok=True)  # or the next try of the job makes it first
    job = accepted
    while not job.status.is_final:
        rig.clock.now += 5
        await asyncio.sleep(0.01)
        job = await service.jobs.get(job.id)
    assert (job.status, job.outcome) == ("completed", Outcome.L1)
    assert (await service.generate(ask())).stored
    assert (await rig.service().generate(ask())).outcome is Outcome.L3
    assert len(rig.renderer.asked) == 1


async def test_urgency_reaches_the_renderer(rig: Rig) -> None:
    """Priority and deadline of a request or a job go with its render; whoever comes later gets the same video."""
    service = rig.service()
    await service.generate(ask("one", priority="warm_up"))
    await ended(service, await service.jobs.submit(ask("two", priority="batch", deadline_seconds=30)))
    await service.generate(ask("three"))
    assert [request.urgency for request in rig.renderer.requests] == [
        Urgency(Priority.WARM_UP), Urgency(Priority.BATCH, rig.clock.now + 30), Urgency()
    ]  # fmt: skip
    assert (await service.generate(ask("one", deadline_seconds=1))).outcome is Outcome.L1


async def test_a_flight_hurries_for_whoever_joins_it(rig: Rig) -> None:
    """The renderer hears of a joiner who is in more of a hurry, and only of such; the two wishes are joined."""
    service = rig.service()
    rig.renderer.hold()
    job = await service.jobs.submit(ask(priority="batch"))
    await until(lambda: bool(rig.renderer.requests))
    await service.jobs.submit(ask(priority="warm_up"))
    assert rig.renderer.promoted == []
    await service.jobs.submit(ask(priority="batch", deadline_seconds=30))
    await service.jobs.submit(ask())
    assert rig.renderer.promoted == [
        (job.keys.video, Urgency(Priority.BATCH, rig.clock() + 30)),
        (job.keys.video, Urgency(Priority.INTERACTIVE, rig.clock() + 30)),
    ]
    assert len(rig.renderer.requests) == 1
    rig.renderer.allow()


async def test_quality_reaches_the_renderer(rig: Rig) -> None:
    """Another quality is another video, rendered with that quality in its spec."""
    service = rig.service()
    first, again, finer = [await service.generate(ask(quality=quality)) for quality in (None, 23, 5)]
    assert [answer.outcome for answer in (first, again, finer)] == [Outcome.RENDERED, Outcome.L1, Outcome.RENDERED]
    assert [request.spec.quality for request in rig.renderer.requests] == [23, 5]


async def test_random_seed_is_drawn_told_and_cached_under(rig: Rig) -> None:
    """seed=random gives different videos; asking again for the told seed is a hit on the same one."""
    service = rig.service()
    first, second = await service.generate(ask(seed="random")), await service.generate(ask(seed="random"))
    assert first.spec.seed != second.spec.seed
    again = await service.generate(ask(seed=first.spec.seed))
    assert (again.outcome, again.entry) == (Outcome.L1, first.entry)


async def test_invalidate(rig: Rig) -> None:
    """Invalidating a key removes its video from every tier and every router's memory; then it is rendered anew."""
    one, two = rig.service(), rig.service()
    key = (await one.generate(ask())).keys.video
    await two.generate(ask())
    assert (await one.invalidate(key))["deleted"] == ["l1", "l3"]
    assert (await two.generate(ask())).outcome is Outcome.RENDERED
    assert (await one.invalidate("0" * 64))["deleted"] == []


@pytest.mark.parametrize(
    "key", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "../../etc/passwd", "\ud800", "0" * 64 + "\n"]
)
async def test_invalidate_takes_only_keys(rig: Rig, key: str) -> None:
    """Anything but 64 lower-case hex digits is refused before any tier hears of it."""
    with pytest.raises(InvalidRequest):
        await rig.service().invalidate(key)


async def test_explain(rig: Rig) -> None:
    """explain tells the normalised prompt, the keys and which tier has the video, and renders nothing."""
    service = rig.service()
    before = await service.explain(ask(" A Red circle moves left!! "))
    await service.generate(ask())
    after = await service.explain(ask())
    assert before["normalised"] == after["normalised"] == "a red circle moves left"
    assert before["keys"] == after["keys"]
    assert (before["tiers"], after["tiers"]) == ({"l1": False, "l3": False}, {"l1": True, "l3": True})
    assert len(rig.renderer.asked) == 1


async def test_a_renderer_that_ends_without_a_video(rig: Rig) -> None:
    """A stream that just stops is a failed render, not a hang."""

    class Silent:
        async def render(self, request: object) -> object:
            return
            yield

        async def stats(self) -> dict[str, object]:
            return {}

    with pytest.raises(RenderFailed):
        await rig.service(renderer=Silent()).generate(ask())


async def test_nothing_is_left_behind(rig: Rig) -> None:
    """After many requests of all kinds no flight, waiter, follower or background task stays."""
    service = rig.service()
    for number in range(20):
        await ended(service, await service.jobs.submit(ask(seed=number)))
        await service.generate(ask(seed=number))
    rig.renderer.failure = RenderFailed("no")
    for number in range(20, 30):
        with pytest.raises(RenderFailed):
            await service.generate(ask(seed=number))
        await ended(service, await service.jobs.submit(ask(seed=number)))
    await until(lambda: not service.jobs._tracker._background)
    stats = await service.stats()
    assert (stats["flights"], stats["waiting"], stats["jobs"]["followed"]) == (0, 0, 0)
    assert service.jobs._tracker._watchers == {}


async def test_unknown_job(rig: Rig) -> None:
    """An id that names nothing is NotFound for look-up, content and deletion."""
    service = rig.service()
    for call in (service.jobs.get, service.jobs.content, service.jobs.delete):
        for job_id in (
            "",
            "video_",
            "video_" + "0" * 32,
            "video_" + "A" * 80,
            "index",
            "/index",
            "\ud800",
            "x" * 10_000,
        ):
            with pytest.raises(NotFound) as missing:
                await call(job_id)
            assert len(str(missing.value)) < 200
