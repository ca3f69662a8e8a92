"""Who gets a request: the least busy of those that answer, and what is on its way counts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ray.exceptions import ActorDiedError

from deployments.placement import PROBED, LeastBusyRouter


class Replica:
    """Answers with its queue length, or fails as it is told."""

    max_ongoing_requests = 4

    def __init__(self, name: str, length: int | Exception = 0) -> None:
        self.replica_id: Any = name
        self.length = length
        self.asked = 0

    async def get_queue_len(self, *, deadline_s: float) -> int:
        self.asked += 1
        await asyncio.sleep(0)
        if isinstance(self.length, Exception):
            raise self.length
        return self.length


class Router(LeastBusyRouter):
    """Without Serve's own part, which needs a cluster; `told` and `dead` are what it would have heard."""

    def __init__(self) -> None:
        self.told: dict[Any, int] = {}
        self.dead: list[Any] = []
        self.initialize_state()

    def on_new_queue_len_info(self, replica_id: Any, num_ongoing_requests: int) -> None:
        self.told[replica_id] = num_ongoing_requests

    def on_replica_actor_died(self, replica_id: Any) -> None:
        self.dead.append(replica_id)

    async def choice(self, replicas: Sequence[Replica]) -> Any:
        """Return the name of the replica that is chosen."""
        ranks: Any = await self.choose_replicas(list(replicas))  # type: ignore[arg-type]
        return ranks[0][0].replica_id if ranks else None


async def test_the_shortest_queue_gets_it() -> None:
    """Of three replicas the one with fewest requests is chosen, and Serve is told what was seen."""
    router = Router()
    assert await router.choice([Replica("a", 2), Replica("b", 1), Replica("c", 3)]) == "b"
    assert router.told == {"a": 2, "b": 1, "c": 3}


async def test_requests_at_one_time_do_not_meet() -> None:
    """Six at once on six idle replicas go to six; what was accepted is counted by its replica alone."""
    router = Router()
    replicas = [Replica(name) for name in "abcdef"]
    assert sorted(await asyncio.gather(*(router.choice(replicas) for _ in range(6)))) == list("abcdef")
    for replica in replicas[1:]:
        router.on_request_routed(None, replica.replica_id, None)  # type: ignore[arg-type]
        replica.length = 1
    assert router._under_way(replicas[0].replica_id) == 1
    router.on_request_routed(None, replicas[0].replica_id, None)  # type: ignore[arg-type]
    assert await router.choice(replicas) == "a"


async def test_an_answer_older_than_the_last_request_does_not_hide_it() -> None:
    """A queue told as empty just before a request came, which is accepted before that answer is read: not empty."""
    router = Router()

    class Late(Replica):
        async def get_queue_len(self, *, deadline_s: float) -> int:
            told = await super().get_queue_len(deadline_s=deadline_s)
            if self.asked == 3:
                for _ in range(2):
                    router.on_request_routed(None, self.replica_id, None)  # type: ignore[arg-type]
            return told

    one, other = Late("one"), Replica("other", 3)
    assert [await router.choice([one, other]) for _ in range(2)] == ["one", "one"]
    other.length = 1
    assert await router.choice([one, other]) == "other"


async def test_what_was_never_accepted_is_forgotten() -> None:
    """A request that was refused, or whose client left, stops counting after a while."""
    now = [100.0]
    router = Router()
    router._clock = lambda: now[0]
    one, other = Replica("one"), Replica("other", 1)
    assert await router.choice([one, other]) == "one"
    one.length = 1
    assert await router.choice([one, other]) == "other"
    one.length, other.length = 0, 0
    now[0] += 2
    assert await asyncio.gather(router.choice([one]), router.choice([one, other])) == ["one", "other"]


async def test_full_silent_and_dead_replicas_are_passed_over() -> None:
    """A full one gets nothing, one that fails is not asked for more, a dead one is reported; all such: Serve waits."""
    router = Router()
    full, broken = Replica("full", 4), Replica("broken", RuntimeError("away"))
    dead = Replica("dead", ActorDiedError())
    assert await router.choice([full, broken, dead, Replica("busy", 3)]) == "busy"
    assert router.dead == ["dead"]
    assert await router.choice([full, broken]) is None
    assert await router.choice([]) is None


async def test_of_many_some_are_asked() -> None:
    """Looking costs the same in a cluster of any size."""
    replicas = [Replica(str(number)) for number in range(3 * PROBED)]
    await Router().choice(replicas)
    assert sum(replica.asked for replica in replicas) == PROBED
