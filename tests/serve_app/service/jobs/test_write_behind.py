"""What a router still has to write: the newest word on each job, in an outage and after it."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from serve_app.core import Outcome
from serve_app.errors import NotFound, Unavailable
from serve_app.service.jobs.job import Job
from serve_app.service.jobs.store import MemoryJobs
from serve_app.service.jobs.write_behind import FILED_AT_ONCE, WriteBehind
from tests.serve_app.service.rig import NOW, a_job


class Away(MemoryJobs):
    """A store that cannot be reached while `away`; `batches` is what came at once."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.batches: list[int] = []

    def _ask(self) -> None:
        if self.away:
            raise Unavailable("away")

    async def add(self, *jobs: Job) -> None:
        self._ask()
        self.batches.append(len(jobs))
        await super().add(*jobs)

    async def update(self, job: Job) -> Job | None:
        self._ask()
        return await super().update(job)

    async def delete(self, job_id: str) -> bool:
        self._ask()
        return await super().delete(job_id)

    async def beat(self, job_ids: Iterable[str]) -> list[str]:
        self._ask()
        return await super().beat(job_ids)


@pytest.fixture
def store() -> Away:
    return Away()


@pytest.fixture
def write_behind(store: Away) -> WriteBehind:
    return WriteBehind(store)


DONE = a_job().completed(Outcome.RENDERED, "hit", NOW)


async def test_the_newest_state_counts(store: Away, write_behind: WriteBehind) -> None:
    """Of all that was owed on a job in an outage, what is written is the last; until then the caller goes on."""
    await store.add(a_job())
    store.away = True
    write_behind.owe(a_job().started("hit"))
    assert await write_behind.update(DONE) is DONE
    assert len(write_behind) == 1
    with pytest.raises(Unavailable):
        await write_behind.flush()
    store.away = False
    await write_behind.flush()
    assert (len(write_behind), await store.get(DONE.id)) == (0, DONE)


async def test_a_deletion_is_the_last_word(store: Away, write_behind: WriteBehind) -> None:
    """What was deleted in an outage is gone at once, and a late follower does not bring it back afterwards."""
    await store.add(a_job())
    store.away = True
    assert await write_behind.delete(DONE.id, known=True)
    write_behind.owe(a_job().started("hit"))
    assert await write_behind.update(DONE) is DONE
    with pytest.raises(NotFound, match="deleted"):
        await write_behind.get(DONE.id)
    store.away = False
    await write_behind.flush()
    for look in (write_behind.get, store.get):
        with pytest.raises(NotFound, match="deleted"):
            await look(DONE.id)


async def test_what_may_not_exist_is_not_deleted_blindly(store: Away, write_behind: WriteBehind) -> None:
    """In an outage the deletion of an unknown job says that it could not be done, and nothing is owed."""
    store.away = True
    with pytest.raises(Unavailable):
        await write_behind.delete("video_1", known=False)
    assert len(write_behind) == 0


async def test_update_says_how_the_job_stands(store: Away, write_behind: WriteBehind) -> None:
    """With the store there, a caller hears at once of a deletion, and of an end that was told before."""
    await store.add(DONE)
    failed = a_job().failed("no", "no", NOW)
    assert await write_behind.update(failed) == DONE
    await store.delete(DONE.id)
    assert await write_behind.update(failed) is None
    assert len(write_behind) == 0


async def test_filed_records_go_in_batches_and_are_kept(store: Away, write_behind: WriteBehind) -> None:
    """Hits' records that could not be written are written later, in their order, each once."""
    store.away = True
    firsts = [write_behind.file(a_job(number)) for number in range(250)]
    assert firsts == [True] + [False] * 249
    with pytest.raises(Unavailable):
        await write_behind.write_filed()
    assert len(write_behind) == 250
    store.away = False
    await write_behind.flush()
    assert store.batches == [FILED_AT_ONCE, FILED_AT_ONCE, 50]
    assert [job.id for job in (await store.page(after=None, limit=250, order="asc")).jobs] == [
        f"video_{number}" for number in range(250)
    ]
