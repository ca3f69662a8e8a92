"""Invalidation across routers: each choice, each tier, lost messages, late writes, stores that are away or emptied.

Each `Router` is what a replica is: a service with connections, memory and a book of rules of its own, over one Valkey
and one folder. Its polls happen when a test says `sync`; messages come over the real connection unless it is `deaf`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from serve_app.cache.invalidation.rules import begun_at
from serve_app.cache.invalidation.sync import RuleSync
from serve_app.core import Entry, Outcome, RenderEvent, RenderRequest
from serve_app.errors import ContentGone, NotFound, Unavailable, Unprocessable
from serve_app.flight.redis_record import RedisFlightRecords
from serve_app.schema.invalidation import parse_invalidation
from serve_app.service.service import Answer, VideoService
from tests.conftest import ValkeyServer
from tests.serve_app.service.rig import SECRET, Rig, ask, until

PROMPT = "a red circle moves left"


@dataclass
class Router:
    """One replica."""

    service: VideoService
    rules: RuleSync
    rig: Rig

    async def ask(self, prompt: str = PROMPT, **fields: Any) -> Answer:
        return await self.service.generate(ask(prompt, **fields))

    async def invalidate(self, **choice: Any) -> dict[str, Any]:
        return await self.service.invalidate_where(parse_invalidation(choice))

    async def sync(self) -> None:
        await self.rules.sync()


class NoPeers:
    """A broadcast that reaches nobody: what a replica hears then, it hears through Redis and L3."""

    services: list[VideoService]

    def __init__(self) -> None:
        self.services = []

    async def forget(self, keys: tuple[str, ...], job_ids: tuple[str, ...]) -> None: ...

    async def learn(self, rules: tuple[Any, ...]) -> None: ...

    async def counts(self) -> tuple[str, list[dict[str, Any]]]:
        return "router-1", []


Make = Callable[..., Router]


def maker(rig: Rig) -> Make:
    rig.peers = NoPeers()  # type: ignore[assignment]

    def make(*, deaf: bool = False, renderer: Any = None) -> Router:
        rules = rig.rules(deaf=deaf)
        redis = rig.redis()
        flights = None if redis is None else RedisFlightRecords(redis, secret=SECRET, linger_seconds=0.05)
        return Router(rig.service(rules=rules, flights=flights, renderer=renderer), rules, rig)

    return make


@pytest.fixture
def router(shared_rig: Rig) -> Make:
    """A function that makes one more router over the Valkey and the folder."""
    return maker(shared_rig)


CHOICES: dict[str, Callable[[Answer, VideoService], dict[str, Any]]] = {
    "key": lambda answer, service: {"key": answer.keys.video},
    "prompt": lambda answer, service: {"prompt": "Please generate a video of A RED circle moves left."},
    "prompt of a model": lambda answer, service: {"prompt": PROMPT, "model": "native/demo"},
    "model": lambda answer, service: {"model": service.planner.card.name},
    "weights": lambda answer, service: {"fingerprint": service.planner.card.model_fingerprint},
    "text encoder": lambda answer, service: {"fingerprint": service.planner.card.text_encoder_fingerprint},
    "tag": lambda answer, service: {"tag": "spring"},
    "age": lambda answer, service: {"older_than_seconds": 0},
}


@pytest.mark.parametrize("choice", CHOICES)
async def test_each_choice_reaches_every_tier_of_every_router(router: Make, choice: str) -> None:
    """Two routers have the video in memory, Redis and the folder; after one is told, both render it anew, once."""
    one, two = router(), router()
    first = await one.ask(tags=["spring"])
    assert (await two.ask()).outcome is Outcome.L2
    told = await one.invalidate(**CHOICES[choice](first, one.service))
    assert told["deleted"]["l1"] == 1
    await until(lambda: not two.service._cache.contains_now(first.keys.video))  # by the message alone
    assert (await two.ask()).outcome is Outcome.RENDERED
    assert (await one.ask()).outcome is Outcome.L2
    assert len(one.rig.renderer.asked) == 2


OTHERS: dict[str, dict[str, Any]] = {
    "another key": {"key": "0" * 64},
    "another prompt": {"prompt": "a blue square moves left"},
    "another fingerprint": {"fingerprint": "f"},
    "another tag": {"tag": "autumn"},
    "another tag by case": {"tag": "Spring"},
    "older than it is": {"older_than_seconds": 3600},
}


@pytest.mark.parametrize("choice", OTHERS)
async def test_what_is_not_chosen_stays(router: Make, choice: str) -> None:
    """A rule about something else leaves memory, Redis and the folder as they were."""
    one, two = router(), router()
    first = await one.ask(tags=["spring"])
    await one.invalidate(**OTHERS[choice])
    assert (await one.ask()).outcome is Outcome.L1
    await two.sync()
    await one.service._cache.delete("1" * 64)
    assert (await two.ask()).entry == first.entry
    assert len(one.rig.renderer.asked) == 1


@pytest.mark.parametrize("tier", ["l2", "l3"])
async def test_a_covered_value_in_one_tier_is_found_nowhere(router: Make, tier: str) -> None:
    """What lies in Redis alone, or in the folder alone, is a miss, is counted and is deleted there."""
    one = router()
    first = await one.ask()
    other = next(each for each in one.service._cache._remotes if each.tier != tier)
    await other.delete(first.keys.video)
    await one.invalidate(prompt=PROMPT)
    assert (await one.ask()).outcome is Outcome.RENDERED
    assert one.service._cache.stats()[tier]["invalidated"] == 1


async def test_a_lost_message_is_found_by_the_epoch(router: Make) -> None:
    """A router that hears nothing goes on with its memory until its next look, which finds another epoch."""
    one, deaf = router(), router(deaf=True)
    first = await one.ask()
    assert (await deaf.ask()).entry == first.entry
    await one.invalidate(model="native/demo")
    assert (await deaf.ask()).outcome is Outcome.L1
    await deaf.sync()
    assert (await deaf.ask()).outcome is Outcome.RENDERED


async def test_a_new_router_knows_the_rules(router: Make) -> None:
    """A router that starts afterwards believes no tier before it has read the rules."""
    one = router()
    first = await one.ask()
    await one.invalidate(tag="unrelated")
    await one.invalidate(prompt=PROMPT)
    await one.service._cache.put(first.entry)  # a late write, of what was begun before
    assert (await router(deaf=True).ask()).outcome is Outcome.RENDERED


async def test_a_late_write_brings_nothing_back(router: Make) -> None:
    """A writer that was paused since before the rule may write all tiers: nobody is given what it wrote."""
    one, two = router(), router()
    first = await one.ask()
    await one.invalidate(key=first.keys.video)
    late = one.rig.cache(l1=False)  # another process, that knows of nothing
    await late.put(first.entry)
    assert (await two.ask()).outcome is Outcome.RENDERED
    fresh = await two.ask()
    assert begun_at(fresh.entry) > begun_at(first.entry)
    await late.put(first.entry)
    assert [(await each.ask()).entry.meta["begun_at"] for each in (one, two)] == [begun_at(fresh.entry)] * 2


async def test_a_render_in_the_air_answers_those_who_asked_before(router: Make) -> None:
    """Who asked before the rule gets that render; who asks after it leads one of their own, and that one stays."""
    one, two = router(), router()
    one.rig.renderer.hold()
    before = [asyncio.create_task(each.ask()) for each in (one, two)]
    await until(lambda: len(one.rig.renderer.asked) == 1 and len(two.service._loader) == 1)
    await asyncio.sleep(0.05)  # both are on the one flight
    await one.invalidate(prompt=PROMPT)
    await two.sync()
    after = asyncio.create_task(two.ask())
    await until(lambda: len(one.rig.renderer.asked) == 2)
    one.rig.renderer.allow()
    old = [(await each).entry for each in before]
    new = (await after).entry
    asked = {begun_at(each) for each in old}
    assert begun_at(new) > min(asked) or begun_at(new) == min(asked)
    assert begun_at(new) >= max(rule.before for rule in two.rules.book)
    assert (await one.ask()).entry == new
    assert len(one.rig.renderer.asked) == 2


async def test_nobody_joins_a_flight_that_is_older_than_the_rule(router: Make) -> None:
    """A key that is invalidated while it is rendered by one router is rendered by the other anew, under a new token."""
    one, two = router(), router()
    one.rig.renderer.hold()
    before = asyncio.create_task(one.ask())
    await until(lambda: len(one.rig.renderer.asked) == 1)
    await two.invalidate(key=one.service.planner.plan(ask()).keys.video)
    after = asyncio.create_task(two.ask())
    await until(lambda: len(one.rig.renderer.asked) == 2)
    one.rig.renderer.allow()
    answers = await asyncio.gather(before, after)
    first, second = one.rig.renderer.requests
    assert first.token is not None
    assert second.token is not None
    assert first.token < second.token
    assert begun_at(answers[1].entry) == second.token


@pytest.mark.parametrize("shared", [True, False], ids=["redis", "folder alone"])
async def test_a_render_under_an_invalidated_tag_is_no_answer_to_others(
    rig: Rig, shared_rig: Rig, shared: bool
) -> None:
    """A request without the tag, made after the tag's invalidation, does not get the tagged render under way."""
    make = maker(shared_rig if shared else rig)
    one, two = make(), make()
    one.rig.renderer.hold()
    tagged = asyncio.create_task(one.ask(tags=["spring"]))
    untagged = asyncio.create_task(two.ask())
    await until(lambda: bool(one.rig.renderer.asked) and len(two.service._loader) == 1)
    await asyncio.sleep(0.05)
    await one.invalidate(tag="spring")
    await two.sync()
    after = [asyncio.create_task(each.ask()) for each in (one, two)]
    await asyncio.sleep(0.05)
    one.rig.renderer.allow()
    await asyncio.gather(tagged, untagged)
    for each in await asyncio.gather(*after):
        assert not one.rules.book.covers("video", each.entry)


async def test_an_untagged_video_outlives_the_invalidation_of_a_tag_it_gets_later(router: Make) -> None:
    """Asked for with a tag for the first time after that tag's invalidation, a stored video is found, not rendered."""
    one, two = router(), router()
    await one.ask()
    await one.invalidate(tag="spring")
    await two.sync()
    assert (await two.ask(tags=["spring"])).outcome is Outcome.L2


async def test_a_tag_of_a_later_request_counts(router: Make) -> None:
    """A video made without a tag and asked for with one, from memory even, belongs to that tag."""
    one, two = router(), router()
    await one.ask()
    assert (await one.ask(tags=["late"])).outcome is Outcome.L1
    await until(lambda: not one.rules._pending and one.rules._noting is not None and one.rules._noting.done())
    await two.invalidate(tag="late")
    assert (await two.ask()).outcome is Outcome.RENDERED
    await one.sync()
    assert (await one.ask()).outcome is Outcome.L2
    await two.invalidate(tag="late")  # the new video was not asked for with it
    assert (await two.ask()).outcome is Outcome.L1


async def test_a_tag_is_noted_again_after_its_invalidation(router: Make) -> None:
    """Debouncing does not outlive a rule: what is asked for with the tag afterwards belongs to it again."""
    one = router()
    for _ in range(2):
        await one.ask()
        assert (await one.ask(tags=["late"])).outcome is Outcome.L1
        await one.invalidate(tag="late")
    assert len(one.rig.renderer.asked) == 2
    assert (await one.ask()).outcome is Outcome.RENDERED


async def test_both_forms_of_a_mistyped_prompt(router: Make) -> None:
    """A prompt asked for with its typos kept is invalidated by the same letters, and so is the corrected one."""
    one = router()
    kept = await one.ask("a red giraff runs", correct_typos=False)
    corrected = await one.ask("a red giraff runs")
    assert kept.keys.video != corrected.keys.video
    await one.invalidate(prompt="a red giraff runs")
    assert (await one.ask("a red giraff runs", correct_typos=False)).outcome is Outcome.RENDERED
    assert (await one.ask("a red giraffe runs")).outcome is Outcome.RENDERED


async def test_prompts_and_models_that_are_none(router: Make) -> None:
    """An empty prompt, and a prompt of a model that is not served here, are refused by name; nothing changes."""
    one = router()
    with pytest.raises(Unprocessable) as empty:
        await one.invalidate(prompt=" ")
    with pytest.raises(NotFound) as unknown:
        await one.invalidate(prompt=PROMPT, model="native/5b")
    assert (empty.value.param, unknown.value.param) == ("prompt", "model")
    assert len(one.rules.book) == 0


async def test_what_is_not_known_is_told(router: Make) -> None:
    """A key that no tier has and a fingerprint that nothing is made by say so; those that are, too."""
    one = router()
    first = await one.ask()
    card = one.service.planner.card
    assert (await one.invalidate(fingerprint="nope"))["known"] is False
    assert (await one.invalidate(key="0" * 64))["known"] is False
    assert (await one.ask()).outcome is Outcome.L1
    assert (await one.invalidate(key=first.keys.video))["known"] is True
    assert (await one.invalidate(fingerprint=card.decoder_fingerprint))["known"] is True
    assert (await one.invalidate(tag="nope"))["known"] is None
    with pytest.raises(NotFound, match=r"native/demo.*fingerprint"):
        await one.invalidate(model="nope")


async def test_redis_away_then_empty(start_valkey: Callable[..., ValkeyServer], tmp_path: Any) -> None:
    """Without Redis an invalidation is recorded in L3 and found there by others; an emptied Redis gets it back."""
    server = start_valkey()
    rig = Rig(tmp_path / "l3", server.url)
    make = maker(rig)
    one, two = make(), make()
    try:
        first = await one.ask()
        assert (await two.ask()).entry == first.entry
        server.kill()
        assert (await one.ask()).outcome is Outcome.L1
        await one.invalidate(prompt=PROMPT)
        assert (await one.ask()).outcome is Outcome.RENDERED
        await two.sync()
        assert (await two.ask()).entry.meta["begun_at"] != begun_at(first.entry)
        server.restart()  # empty
        await until(lambda: _reached(one))
        rig.folder = None
        three = maker(rig)(deaf=True)  # it has no L3, so that what it knows comes from Redis
        await three.service._cache.rules.ready()
        assert [rule.kind for rule in three.rules.book] == ["prompt"]
    finally:
        await rig.aclose()


async def _reached(router: Router) -> bool:
    await router.sync()
    return bool(router.rules._version)


async def test_nowhere_to_record(start_valkey: Callable[..., ValkeyServer]) -> None:
    """With Redis away and no L3 an invalidation is refused with a 503 and nothing is changed."""
    server = start_valkey()
    rig = Rig(None, server.url)
    one = maker(rig)()
    try:
        first = await one.ask()
        server.kill()
        for choice in ({"prompt": PROMPT}, {"key": first.keys.video}):
            with pytest.raises(Unavailable) as refused:
                await one.invalidate(**choice)
            assert refused.value.retry_after
        assert (await one.ask()).outcome is Outcome.L1
    finally:
        await rig.aclose()


async def test_the_folder_alone(rig: Rig) -> None:
    """Without Redis the routers of one folder find each other's rules in it."""
    make = maker(rig)
    one, two = make(), make()
    await one.ask()
    await two.ask()
    await one.invalidate(older_than_seconds=0)
    await two.sync()
    assert (await two.ask()).outcome is Outcome.RENDERED


async def test_a_job_of_an_invalidated_video_says_that_it_is_gone(router: Make) -> None:
    """The record of a completed job stays; its content is gone, by key and by a wider choice."""
    one = router()
    for choice in ("key", "prompt"):
        job = await one.service.jobs.submit(ask())
        await until(lambda job=job: _completed(one, job.id))
        answer = await one.ask()
        await one.invalidate(**CHOICES[choice](answer, one.service))
        with pytest.raises(ContentGone):
            await one.service.jobs.content(job.id)


async def _completed(router: Router, job_id: str) -> bool:
    return (await router.service.jobs.get(job_id)).status == "completed"


async def test_many_at_once_are_all_in_force(router: Make) -> None:
    """Rules made by two routers at a time are all in Redis, in the mirror and in both books."""
    one, two = router(), router()
    await asyncio.gather(*(each.invalidate(tag=f"{n} {m}") for n, each in enumerate((one, two)) for m in range(10)))
    for each in (one, two):
        await each.sync()
        each.rules._mirrored_at = None
        await each.sync()
        assert len(each.rules.book) == 20
    assert one.rules._mirror is not None
    assert await one.rules._mirror.read() == frozenset(one.rules.book)


class Slow:
    """A renderer that others may look into: what it was asked for, with which rules."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    async def render(self, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        async for event in self._rig.renderer.render(request):
            yield event

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rig.renderer, name)


async def test_a_request_carries_what_its_router_knows(router: Make) -> None:
    """Whoever renders is told the rules that may concern it, tags too, and no others of single keys or prompts."""
    one = router()
    await one.invalidate(key="0" * 64)
    await one.invalidate(prompt="something else")
    await one.invalidate(tag="some tag")
    await one.invalidate(prompt=PROMPT)
    await one.ask()
    assert sorted(rule.kind for rule in one.rig.renderer.requests[-1].rules) == ["prompt", "tag"]


async def test_nothing_in_redis_tells_what_was_chosen(router: Make) -> None:
    """Neither names nor values of the rules in Redis have a prompt, a tag or a model in clear."""
    one = router()
    await one.ask(tags=["secret tag"])
    await one.ask(tags=["another secret"])
    await one.invalidate(prompt=PROMPT)
    await one.invalidate(tag="secret tag")
    await one.invalidate(model="native/demo")
    client = one.rig.pools[0].client
    seen = [name async for name in client.scan_iter(match="encore:{rules}*")]
    assert seen
    for name in seen:
        kind = await client.type(name)
        read = {b"hash": client.hgetall, b"set": client.smembers, b"string": client.get}
        value = await (client.zrange(name, 0, -1) if kind == b"zset" else read[kind](name))
        for secret in (b"circle", b"secret", b"native"):
            assert secret not in name
            assert secret not in repr(value).encode()


def an_entry(key: str, **meta: Any) -> Entry:
    return Entry.of(key, b"a video", meta)
