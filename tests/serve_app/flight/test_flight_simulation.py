"""The cluster-wide flight under every mishap that hypothesis thinks of: thousands of small worlds in virtual time.

Each example is a cluster, its clients and its mishaps; the code between is the product's own. `ENCORE_FLIGHT_RUNS` sets
how many are tried (the default suits CI), and a failing one is printed as a `Story` that can be told again.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.core import Outcome
from serve_app.errors import RenderCancelled, RenderCrashed, RenderFailed
from serve_app.flight.attempts import MAX_ATTEMPTS
from tests.serve_app.cache.frames import opened
from tests.serve_app.flight.flight_cluster import SECRET, Cluster, Render, Shape, Wait, simulated

RUNS = int(os.environ.get("ENCORE_FLIGHT_RUNS", "400"))
SETTLED = 15.0
"""Seconds after the last mishap when breakers are closed and leases decided."""
QUARANTINED = 60.0
"""Seconds more when a render kills its process: it is tried again, ever later, also when only dead routers wait."""
SLACK = 1.0
"""Seconds between a look into a store and the render that follows from it, at most, when nobody is paused."""

Kind = Literal[
    "kill router", "kill diffusion", "pause router", "pause diffusion", "redis away", "redis restarts empty",
    "redis flushed", "messages lost", "answers lost", "render fails", "render kills", "invalidate",
    "clock steps",
]  # fmt: skip


@dataclass(frozen=True)
class Client:
    """Who comes at a tenth of a second to a router, and how long it waits, None for ever."""

    at: int
    router: int
    key: int
    patience: int | None = None
    at_once: bool = False


@dataclass(frozen=True)
class Mishap:
    """What happens at a tenth of a second to which of them, for how many tenths."""

    at: int
    kind: Kind
    which: int = 0
    tenths: int = 0


@dataclass(frozen=True)
class Story:
    """One example."""

    shape: Shape
    clients: tuple[Client, ...]
    mishaps: tuple[Mishap, ...] = ()
    seed: int = 0
    skews: tuple[float, ...] = ()

    @property
    def calm_at(self) -> float:
        """When the last mishap is over."""
        return max((mishap.at + mishap.tenths for mishap in self.mishaps), default=0) / 10

    @property
    def redis_failed(self) -> bool:
        return self.happened("redis away", "redis restarts empty", "answers lost")

    @property
    def outside_deaths(self) -> int:
        """How many attempts may have ended in a death without their fault."""
        return sum(
            "diffusion" in mishap.kind or mishap.kind in ("redis flushed", "redis restarts empty")
            for mishap in self.mishaps
        )

    def happened(self, *kinds: Kind) -> bool:
        return any(mishap.kind in kinds for mishap in self.mishaps)


shapes = st.builds(
    Shape,
    routers=st.integers(1, 3),
    diffusions=st.integers(1, 2),
    keys=st.integers(1, 2),
    steps=st.integers(1, 4),
    step_seconds=st.sampled_from([0.5, 0.1, 2.0, 7.0]),
    has_l3=st.booleans(),
)
clients = st.builds(
    Client,
    at=st.integers(0, 150),
    router=st.integers(0, 2),
    key=st.integers(0, 1),
    patience=st.none() | st.integers(1, 100),
    at_once=st.booleans(),
)
staying = st.builds(Client, at=st.integers(0, 150), router=st.integers(0, 2), key=st.integers(0, 1))
mishaps = st.builds(
    Mishap,
    at=st.integers(0, 200),
    kind=st.sampled_from(Kind.__args__),  # type: ignore[attr-defined]
    which=st.integers(0, 2),
    tenths=st.integers(1, 120),
)
kills = st.builds(
    Mishap,
    at=st.integers(0, 200),
    kind=st.sampled_from(["kill router", "kill diffusion", "messages lost"]),
    which=st.integers(0, 2),
    tenths=st.integers(1, 120),
)


def stories(clients: st.SearchStrategy[Client], mishaps: st.SearchStrategy[Mishap] | None) -> st.SearchStrategy[Story]:
    return st.builds(
        Story,
        shape=shapes,
        clients=st.lists(clients, min_size=1, max_size=8).map(tuple),
        mishaps=st.just(()) if mishaps is None else st.lists(mishaps, max_size=5).map(tuple),
        seed=st.integers(0, 1 << 16),
        skews=st.lists(st.sampled_from([0.0, -3600.0, 7.0, 1e6]), max_size=3).map(tuple),
    )


class Telling:
    """One story as it happened: the cluster, and when stored things were stored."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.cluster = Cluster(story.shape, story.seed, story.skews)
        self.asked: set[str] = set()
        self.renders: list[Render] = []
        world = self.cluster.world
        for client in story.clients:
            world.after(client.at / 10, lambda client=client: self._comes(client))
        for mishap in story.mishaps:
            world.after(mishap.at / 10, lambda mishap=mishap: self._strikes(mishap))

    def tell(self) -> Telling:
        """Play it until everybody has an answer, then until it is calm."""
        cluster, story, shape = self.cluster, self.story, self.story.shape
        last = max([story.calm_at, *(client.at / 10 for client in story.clients)])
        render = shape.steps * shape.step_seconds
        cluster.world.run(last)
        cluster.world.run(last + 60 + 4 * shape.keys * render, self._all_answered)
        hanging = [wait for wait in cluster.waits if not wait.is_over]
        assert not hanging, hanging
        settled = SETTLED + (QUARANTINED if cluster.deadly else 0.0)
        cluster.world.run(max(cluster.world.now, story.calm_at) + settled + render)
        self.asked = {wait.key for wait in cluster.waits}
        self.renders = list(cluster.renders)
        return self

    def _all_answered(self) -> bool:
        return all(wait.is_over for wait in self.cluster.waits)

    def _comes(self, client: Client) -> None:
        key = self.cluster.keys[client.key % len(self.cluster.keys)]
        patience = None if client.patience is None else client.patience / 10
        self.cluster.ask(client.router, key, patience, at_once=client.at_once)

    def _strikes(self, mishap: Mishap) -> None:
        cluster, seconds, now = self.cluster, mishap.tenths / 10, self.cluster.world.now
        key = cluster.keys[mishap.which % len(cluster.keys)]
        deeds: dict[Kind, Callable[[], object]] = {
            "kill router": lambda: cluster.kill_router(mishap.which),
            "kill diffusion": lambda: cluster.kill_diffusion(mishap.which),
            "pause router": lambda: cluster.routers[mishap.which % len(cluster.routers)].process.pause(seconds),
            "pause diffusion": lambda: [
                diffusion.process.pause(seconds)
                for diffusion in cluster.diffusions[mishap.which % max(1, len(cluster.diffusions)) :][:1]
            ],
            "redis away": lambda: cluster.redis_away(seconds, forget=False),
            "redis restarts empty": lambda: cluster.redis_away(seconds, forget=True),
            "redis flushed": cluster.redis.model.flush,
            "messages lost": lambda: setattr(cluster.redis, "deaf_until", max(cluster.redis.deaf_until, now + seconds)),
            "answers lost": lambda: setattr(cluster.redis, "mute_until", max(cluster.redis.mute_until, now + seconds)),
            "render fails": lambda: cluster.poisoned.__setitem__(key, True),
            "clock steps": lambda: setattr(cluster.redis, "clock_off", 900.0 * (mishap.which - 1)),
            "render kills": lambda: cluster.deadly.add(key),
            "invalidate": lambda: cluster.invalidate(mishap.which, key),
        }
        deeds[mishap.kind]()

    # What must hold of every story.

    def check(self) -> None:
        assert not self.cluster.world.errors, self.cluster.world.errors
        self.everybody_got_the_right_thing()
        self.one_video_per_key()
        self.nothing_is_left_over()
        self.nothing_stored_was_rendered_again()
        self.nothing_was_tried_too_often()

    def everybody_got_the_right_thing(self) -> None:
        for wait in self.cluster.waits:
            if wait.flight_result is not None:
                assert wait.flight_result.entry.key == wait.key
                assert wait.flight_result.entry.data.startswith(wait.key.encode())
            if wait.router.alive and not wait.left:
                assert (wait.flight_result is None) != (wait.error is None), wait
            if wait.error is not None:
                assert self._may_fail(wait), wait

    def one_video_per_key(self) -> None:
        """With an L3 that never fails everybody gets the same bytes, and both stores have the same in the end."""
        if not self.story.shape.has_l3 or self.story.happened("answers lost"):
            return  # L2 may keep what it said it had not taken
        given = {
            (wait.key, wait.flight_result.entry.digest) for wait in self.cluster.waits if wait.flight_result is not None
        }
        if not self.story.happened("invalidate"):
            assert len(given) == len({key for key, _ in given}), given
        if self.story.happened("invalidate") and self.story.redis_failed:
            return  # who deletes while a store is away deletes from the other alone
        for key, frame in self.cluster.redis.model.values.items():
            in_l3 = self.cluster.objects.get(key, frame)
            assert opened(frame, key, secret=SECRET).digest == opened(in_l3, key, secret=SECRET).digest

    def _may_fail(self, wait: Wait) -> bool:
        if type(wait.error) is RenderFailed and self.story.happened("render fails"):
            return str(wait.error) == "The model diverged."
        if type(wait.error) is RenderCancelled and self.story.redis_failed:
            return any(each.left for each in self.cluster.waits)  # routers do not know of each other's waiters then
        return type(wait.error) is RenderCrashed and (
            wait.key in self.cluster.deadly or self.story.outside_deaths >= MAX_ATTEMPTS
        )

    def nothing_was_tried_too_often(self) -> None:
        """As long as attempts could be recorded, a render killed its process at most so many times."""
        if self.story.redis_failed:
            return
        died = Counter(render.key for render in self.cluster.renders if render.died)
        assert all(died[key] <= MAX_ATTEMPTS for key in self.cluster.deadly), died

    def nothing_is_left_over(self) -> None:
        cluster = self.cluster
        assert [len(router.source) for router in cluster.routers] == [0] * len(cluster.routers)
        assert [len(diffusion.worker._flights) for diffusion in cluster.diffusions] == [0] * len(cluster.diffusions)
        assert not [diffusion.engine._jobs for diffusion in cluster.diffusions if diffusion.engine._jobs]
        for each in (*cluster.routers, *cluster.diffusions):
            assert not asyncio.all_tasks(each.process.loop), asyncio.all_tasks(each.process.loop)
        alive = [ear for ears in cluster.redis.air.ears.values() for ear in ears if ear[0]._process.alive]  # type: ignore[attr-defined]
        assert not alive

    def nothing_stored_was_rendered_again(self) -> None:
        """With an L3 that never fails: no render was asked for by who could have seen the video there."""
        if not self.story.shape.has_l3:
            return
        for render in self.cluster.renders:
            stored_at = self.cluster.objects.since.get(render.key)
            if stored_at is not None and not self.story.happened("invalidate"):
                late = render.asked_at - stored_at - render.router.paused_seconds
                assert late < SLACK, render

    def ask_everywhere(self) -> None:
        """Afterwards every router gives every video: from a store, or by one render for all."""
        cluster = self.cluster
        for key in cluster.keys:
            stored = key in cluster.redis.model.values or key in cluster.objects
            before, cluster.poisoned = len(cluster.renders), {}
            cluster.deadly.clear()
            cluster.attempts.forget()
            waits = [cluster.ask(router, key) for router in range(len(cluster.routers)) for _ in range(2)]
            cluster.world.run(cluster.world.now + 60, lambda waits=waits: all(wait.is_over for wait in waits))
            results = [wait.flight_result for wait in waits if wait.flight_result is not None]
            assert len(results) == len(waits), waits
            assert all(flight_result.stored or flight_result.outcome is Outcome.L1 for flight_result in results), (
                results
            )
            in_l1 = all(flight_result.outcome is Outcome.L1 for flight_result in results)
            assert len(cluster.renders) - before == (0 if stored or in_l1 else 1), (key, stored)


def told(story: Story) -> Telling:
    telling = Telling(story)
    with simulated(telling.cluster):
        telling.tell()
        telling.check()
        telling.ask_everywhere()
    return telling


@settings(max_examples=RUNS, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(stories(clients, mishaps))
def test_whatever_happens_everybody_gets_an_answer(story: Story) -> None:
    """Under kills, pauses, skewed clocks and a lossy, absent or forgetful Redis the invariants above hold."""
    told(story)


@settings(max_examples=max(20, RUNS // 4), suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(stories(staying, None))
def test_without_mishaps_each_key_is_rendered_once(story: Story) -> None:
    """However clients come, one render per key answers them all."""
    telling = told(story)
    assert sorted(render.key for render in telling.renders) == sorted(telling.asked)


@settings(max_examples=max(20, RUNS // 4), suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(stories(staying, kills))
def test_renders_are_at_most_keys_and_kills(story: Story) -> None:
    """Only the death of a renderer costs a render; a router's death and lost messages cost none."""
    telling = told(story)
    assert {render.key for render in telling.renders} <= telling.asked
    assert all(not render.diffusion.alive for render in telling.renders if not render.ended)
    for key in telling.asked:
        repeated = [render for render in telling.renders if render.key == key][:-1]
        assert all(not render.diffusion.alive for render in repeated), repeated  # also one that died before it stored
