"""What the storm counts and how it judges: notes, clients that ask again, answers, goals. No Encore runs here."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # where Python looks when it runs a program there

import storm
import storm_app
import storm_nginx
import storm_scenarios
from server import Server
from storm_clients import BROKEN, Answer, Crowd
from storm_miss import Added, percentile
from storm_scenarios import CHAOS, CLIENT, DIFFUSION, ENCORE, IDENTICAL, QUICK, ROUTER, Storm, takeover, wrong
from storm_server import DIFFUSIONS, ROUTERS, StormServer, config

from serve_app.engine.engine import StepEngine

VIDEO = b"the bytes of a video"
DIGEST = hashlib.sha256(VIDEO).hexdigest()


def replied(status: int, body: bytes, etag: str = "") -> bytes:
    """One HTTP answer as it goes over the wire."""
    head = f'HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nETag: "{etag}"\r\nX-Encore-Outcome: joined\r\n\r\n'
    return head.encode() + body


@asynccontextmanager
async def scripted(*replies: bytes) -> AsyncIterator[tuple[int, list[str]]]:
    """A server that gives these replies in turn; an empty one breaks the connection. Yields port and paths asked."""
    left, asked = list(replies), []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[0])
        writer.write(left.pop(0))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], asked


async def test_a_client_asks_until_it_is_answered() -> None:
    """Broken connections, refusals and failures are repeated and counted by kind, and the bytes are digested here."""
    busy = replied(503, json.dumps({"error": {"code": "unavailable"}}).encode())
    half = replied(200, VIDEO, DIGEST)[:-5]
    async with scripted(b"", busy, replied(500, b""), half, replied(200, VIDEO, DIGEST)) as (port, asked):
        crowd = Crowd(port)
        answer = await crowd.ask({"prompt": "x"})
    assert (answer.digest, answer.etag_is_digest, answer.outcome, answer.asked_again) == (DIGEST, True, "joined", 4)
    assert crowd.again == {BROKEN: 2, "503 unavailable": 1, "500": 1}
    assert (crowd.sent, crowd.answered, len(asked)) == (5, 1, 5)


async def test_an_error_that_nobody_repeats_ends_the_benchmark() -> None:
    """A 422 is a mistake of the benchmark's own, never an answer that is waited out."""
    async with scripted(replied(422, b"no")) as (port, _):
        with pytest.raises(RuntimeError, match="422"):
            await Crowd(port).ask({})


async def test_the_first_try_can_go_past_the_balancer() -> None:
    """With `first_port` the first try goes there, the repeats go where everybody else's do."""
    async with scripted(b"") as (first, there), scripted(replied(200, VIDEO)) as (port, here):
        answer = await Crowd(port).ask({}, first_port=first)
    assert (len(there), len(here), answer.asked_again) == (1, 1, 1)


async def test_hanging_up_waits_for_no_answer() -> None:
    """A client that hangs up has sent its request and closes the connection when it is told to."""
    closed = asyncio.Event()

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        closed.set()
        writer.close()

    async with await asyncio.start_server(never, "127.0.0.1", 0) as server:
        crowd, leave = Crowd(server.sockets[0].getsockname()[1]), asyncio.Event()
        gone = asyncio.create_task(crowd.hang_up({}, leave))
        while not crowd.sent:  # noqa: ASYNC110 - looked at from outside
            await asyncio.sleep(0.01)
        assert not closed.is_set()
        leave.set()
        await gone
        await asyncio.wait_for(closed.wait(), 5)


def test_notes_are_read_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every note comes back with its process, in order; a file that nobody wrote has none."""
    monkeypatch.setenv(storm_app.VARIABLE, str(tmp_path / "notes"))
    assert storm_app.read(tmp_path / "notes") == []
    storm_app.write(storm_app.READY)
    storm_app.write(storm_app.RENDER, "a-key")
    notes = storm_app.read(tmp_path / "notes")
    assert [(note.pid, note.what, note.key) for note in notes] == [
        (os.getpid(), storm_app.READY, "-"), (os.getpid(), storm_app.RENDER, "a-key")
    ]  # fmt: skip


async def test_a_render_is_noted_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the engine's own `render` is entered the note is on file already."""
    monkeypatch.setenv(storm_app.VARIABLE, str(tmp_path / "notes"))
    seen = []

    async def render(self: StepEngine, job_id: str, *args: Any, **options: Any) -> None:
        seen.extend(storm_app.read(tmp_path / "notes"))

    monkeypatch.setattr(StepEngine, "render", render)
    await storm_app.NotedEngine.render(object.__new__(storm_app.NotedEngine), "key")
    assert [(note.what, note.key) for note in seen] == [(storm_app.RENDER, "key")]


def test_only_a_server_s_own_replicas_can_be_killed(tmp_path: Path) -> None:
    """A process that is no replica below the launcher is refused."""
    server = StormServer(Server(1, 2, tmp_path, os.getpid()), tmp_path / "notes")
    with pytest.raises(LookupError, match="no replica"):
        server.kill(os.getpid())
    assert (server.routers(), server.diffusions()) == ({}, [])


def test_the_config_has_the_replicas() -> None:
    """Three routers and two diffusion replicas, fixed in number, of the application that notes."""
    application = config()["applications"][0]
    deployments = {each["name"]: each for each in application["deployments"]}
    assert application["import_path"] == "benchmarks.storm_app:build"
    assert deployments["CacheRouter"]["num_replicas"] == ROUTERS == 3
    assert deployments["Diffusion"]["num_replicas"] == DIFFUSIONS == 2
    assert not any("autoscaling_config" in each for each in deployments.values())


def an_answer(digest: str = DIGEST, *, etag_is_digest: bool = True) -> Answer:
    return Answer(digest, etag_is_digest, "joined", 1.0, 0)


def test_wrong_answers_are_counted() -> None:
    """Other bytes, and bytes whose ETag is not theirs, are wrong; where there are no ETags only the bytes count."""
    answers = [an_answer(), an_answer("other"), an_answer(etag_is_digest=False)]
    assert wrong(answers, [DIGEST] * 3) == 2
    assert wrong(answers, [DIGEST] * 3, etags=False) == 1
    with pytest.raises(ValueError, match="shorter"):
        wrong(answers, [DIGEST] * 2)


@pytest.mark.parametrize(
    ("began", "kills", "seconds"), [([1.0, 9.0], [4.0], 5.0), ([1.0], [4.0], 0.0), ([1.0, 2.0], [], 0.0)]
)
def test_takeover(began: list[float], kills: list[float], seconds: float) -> None:
    """It is the time from the first kill to the next beginning of a render."""
    assert takeover(began, kills) == seconds


def test_percentiles_are_nearest_ranks() -> None:
    """Of a hundred values p99 is the 99th, and the largest is p100."""
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert percentile([3.0], 0.99) == 3.0


def a_storm(scenario: str, renders: int, kills: int = 0, **others: Any) -> Storm:
    fields: dict[str, Any] = {
        "requests": 200, "answered": 200, "wrong": 0, "asked_again": 0, "again": {}, "seconds": 9.0,
        "takeover_seconds": 0.5,
    }  # fmt: skip
    return Storm(scenario=scenario, renders=renders, kills=(1.0,) * kills, **(fields | others))


GOOD = {
    each.scenario: each
    for each in (
        a_storm(IDENTICAL, 1), a_storm(ROUTER, 1, 1), a_storm(DIFFUSION, 2, 1), a_storm(CLIENT, 1),
        a_storm(CHAOS, 9, 3),
    )
}  # fmt: skip
FAST = Added([1.0] * 99 + [19.0], [0.1])

FAILURES: dict[str, Callable[[Storm], Storm]] = {
    IDENTICAL: lambda each: replace(each, renders=2),
    ROUTER: lambda each: replace(each, renders=2),
    DIFFUSION: lambda each: replace(each, renders=1),
    CLIENT: lambda each: replace(each, renders=0),
    CHAOS: lambda each: replace(each, renders=QUICK.keys + len(each.kills) + 1),
}


def unmet(by: dict[str, Storm], added: Added = FAST) -> list[str]:
    return [goal.name for goal in storm.goals(by, added, QUICK) if not goal.met]


def test_goals_are_met_by_what_should_be() -> None:
    """One render, one, two, one, no more than keys and kills, all right and in time: nothing is unmet."""
    assert unmet(GOOD) == []


@pytest.mark.parametrize("scenario", FAILURES)
def test_a_render_too_many_or_too_few_is_unmet(scenario: str) -> None:
    """Each scenario's count of renders is a goal of its own that can fail."""
    names = unmet(GOOD | {scenario: FAILURES[scenario](GOOD[scenario])})
    assert len(names) == 1
    assert names[0].startswith(f"renders, {scenario}")


@pytest.mark.parametrize(
    ("scenario", "change", "name"),
    [
        (CHAOS, {"kills": ()}, "kills that struck"),
        (CHAOS, {"wrong": 1}, "wrong answers"),
        (CLIENT, {"answered": 199}, "not answered"),
        (DIFFUSION, {"takeover_seconds": 7.0}, "seconds until a dead renderer is replaced"),
    ],
)
def test_other_goals_can_fail(scenario: str, change: dict[str, Any], name: str) -> None:
    """No kill that struck, a wrong answer, one who is not answered, and a slow takeover are noticed."""
    assert any(each.startswith(name) for each in unmet(GOOD | {scenario: replace(GOOD[scenario], **change)}))


def test_a_slow_miss_is_unmet() -> None:
    """Two misses of a hundred above 20 ms are too many, one is not."""
    assert unmet(GOOD, Added([1.0] * 98 + [21.0] * 2, [0.1])) == ["ms added to a miss, p99"]
    assert unmet(GOOD, Added([1.0] * 99 + [21.0], [0.1])) == []


def test_peers_are_shown_and_not_judged() -> None:
    """A peer that renders for everybody is a row of the table and changes no goal."""
    peer = a_storm(IDENTICAL, 200, system="nginx proxy_cache_lock")
    result = storm.result([*GOOD.values(), peer], FAST, storm.QUICK, "no nginx")
    assert result.met
    assert [(row["system"], row["renders"]) for row in result.rows][-1] == ("nginx proxy_cache_lock", 200)
    assert sum(row["system"] == ENCORE for row in result.rows) == 5
    assert result.facts["nginx"] == "no nginx"


def test_nginx_is_asked_for_by_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no nginx the reason names the Debian package, elsewhere there is none."""
    monkeypatch.setattr(storm_nginx.shutil, "which", lambda name: None)
    assert "nginx-light" in storm_nginx.missing()
    monkeypatch.setattr(storm_nginx.shutil, "which", lambda name: f"/usr/sbin/{name}")
    assert storm_nginx.missing() == ""


@pytest.mark.parametrize("extent", [storm_scenarios.FULL, QUICK])
def test_every_video_is_another_one(extent: storm_scenarios.Extent) -> None:
    """Four large videos and one small one a key, no two alike, and each small one is asked for equally often."""
    videos = storm.requests(extent)
    assert len({json.dumps(video, sort_keys=True) for video in videos}) == len(videos) == 4 + extent.keys
    assert extent.small_requests % extent.keys == 0
