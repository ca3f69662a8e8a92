"""What does a cache hit cost over the cheapest thing Ray Serve can do?

Beside Encore, on the same Ray Serve and HAProxy, runs a bare FastAPI route that returns the same 300 kB from memory. In
interleaved rounds both get the same load: the bare route, and a cached video as GET content, POST /v1/videos/sync and
POST /v1/videos. Ratios are taken within a round and the median of the rounds is reported, because machines are noisy.

That a hit in L1 needs nobody else is shown, not assumed: Valkey's own count of commands, hits answered while Valkey is
paused, and Serve's count of calls between deployments, which must not move.

The video is static noise from the product's own encoder, put into the shared tiers under the key of the request, as
VideoEncoder does: no clip of the demo model reaches 300 kB, and a hit does not know what is in the bytes.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import redis
from form import Goal, Result, Row, main
from load import Run, Task, load
from pydantic import SecretStr
from server import Server, cpu_seconds, encore_server, local_config
from sizes import LARGEST

from serve_app.core import Entry
from serve_app.media import encode_mp4
from serve_app.schema import parse_request
from serve_app.settings import Settings
from serve_app.telemetry import Telemetry
from serve_app.wiring.model import open_planner
from serve_app.wiring.tiers import open_cache, open_tiers

FIELDS = {"prompt": "television static", "size": LARGEST, "num_frames": 24, "fps": 16}
BARE, CONTENT, SYNC, SUBMIT = "bare route", "GET content", "POST /v1/videos/sync", "POST /v1/videos"
CONNECTIONS = (1, 16)
PAUSE_SECONDS = 0.4
HITS_IN_A_PAUSE = 10


@dataclass(frozen=True, slots=True)
class Route:
    """One of the four things asked: the raw request and the process that answers it."""

    name: str
    request: str
    pid: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One route under load for a moment: latencies, processor time and Valkey commands per hit."""

    run: Run
    cpu_ms: float
    commands: float


Valkeys = Sequence[redis.Redis]
Samples = dict[tuple[int, str], list[Sample]]
"""By connections and route, one a round."""


def measure(quick: bool) -> Result:
    """Start the server, measure, and end it."""
    rounds, seconds = (5, 0.3) if quick else (15, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "static.mp4"
        file.write_bytes(static_video())
        config = local_config()
        config["applications"].append(bare(file))
        with encore_server(config=config) as server, valkeys_of(server) as valkeys:
            plant(server, file.read_bytes())
            sent = Tally()
            routes = prepare(server, file.read_bytes(), sent)
            waits = {
                route.name: hits_that_waited(server, valkeys, route, sent) for route in routes if route.name != BARE
            }
            samples = collect(server, valkeys, routes, rounds, seconds, sent)
            hops = calls_between_deployments(server, sent.l1_hits)
        return result(samples, waits, hops, sent.l1_hits, file.stat().st_size)


@dataclass(slots=True)
class Tally:
    """Hits that Encore should have answered from L1 so far."""

    l1_hits: int = 0


def static_video() -> bytes:
    """Return 24 frames of coloured static as MP4, about 300 kB."""
    pixels = np.random.default_rng(0).integers(0, 2, (24, *map(int, LARGEST.split("x")[::-1]), 3), dtype=np.uint8)
    return encode_mp4(pixels * np.uint8(255), fps=16, quality=20)


def bare(file: Path) -> dict[str, Any]:
    """Return the second application of the Serve config; its replica gets what a CacheRouter gets."""
    return {
        "name": "bare",
        "route_prefix": "/bare",
        "import_path": "benchmarks.bare:build",
        "args": {"file": str(file)},
        "deployments": [
            {"name": "Bare", "max_ongoing_requests": 2000, "ray_actor_options": _router_options(),
             "graceful_shutdown_timeout_s": 1, "graceful_shutdown_wait_loop_s": 0.2}
        ],
    }  # fmt: skip


def _router_options() -> dict[str, Any]:
    """Return the resources and environment of a CacheRouter, so that both sides run alike."""
    deployments = local_config()["applications"][0]["deployments"]
    options: dict[str, Any] = next(d["ray_actor_options"] for d in deployments if d["name"] == "CacheRouter")
    return options


@contextmanager
def valkeys_of(server: Server) -> Iterator[Valkeys]:
    """Connect to the server's Valkeys: first the one of the cache, then the one of job records."""
    settings = settings_of(server)
    urls = dict.fromkeys(url for url in (settings.redis_url, settings.jobs_url) if url is not None)
    with ExitStack() as stack:
        yield [stack.enter_context(redis.Redis.from_url(url)) for url in urls]


def settings_of(server: Server) -> Settings:
    """Return the settings that the server runs with."""
    settings = Settings(**server.config["applications"][0]["args"])
    return settings.model_copy(update={"secret": SecretStr(server.secret)})


def plant(server: Server, data: bytes) -> None:
    """Put `data` into the shared tiers as the video of FIELDS."""
    settings, telemetry = settings_of(server), Telemetry()
    plan = open_planner(settings).plan(parse_request(FIELDS))

    async def put() -> None:
        cache = open_cache("video", settings, open_tiers(settings, telemetry), telemetry)
        try:
            stored = await cache.put(Entry.of(plan.keys.video, data, {"spec": asdict(plan.spec)}))
        finally:
            await cache.aclose()
        if not stored.tiers:
            raise RuntimeError("no tier took the video")

    asyncio.run(put())


def prepare(server: Server, data: bytes, sent: Tally) -> list[Route]:
    """Bring the video into L1, check that all routes give it from there, and return the routes."""
    wait_for_bare(server, data)
    body = json.dumps(FIELDS)
    ask(server, post("/v1/videos/sync", body))  # from L2 into L1
    _, job = ask(server, post("/v1/videos", body))
    content = f"/v1/videos/{json.loads(job)['id']}/content"
    router, bare_replica = server.replica("encore", "CacheRouter"), server.replica("bare", "Bare")
    routes = [
        Route(BARE, get("/bare/video"), bare_replica),
        Route(CONTENT, get(content), router),
        Route(SYNC, post("/v1/videos/sync", body), router),
        Route(SUBMIT, post("/v1/videos", body), router),
    ]
    for route in routes[1:]:
        headers, got = ask(server, route.request)
        if "hit; detail=l1" not in headers["Cache-Status"] or (route.name != SUBMIT and got != data):
            raise RuntimeError(f"{route.name} did not give the video out of L1: {headers}")
    sent.l1_hits += len(routes)
    ask(server, get("/v1/stats"))  # one call between deployments, so that the count of them is seen to work
    return routes


def get(path: str) -> str:
    """Return a raw GET."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"


def post(path: str, body: str) -> str:
    """Return a raw POST of JSON."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n{body}"


def ask(server: Server, request: str) -> tuple[Any, bytes]:
    """Send a raw request once; return headers and body of a 200."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        return _ask(connection, request)
    finally:
        connection.close()


def _ask(connection: HTTPConnection, request: str) -> tuple[Any, bytes]:
    head, _, body = request.partition("\r\n\r\n")
    first, *fields = head.split("\r\n")
    method, path, _ = first.split(" ")
    connection.request(method, path, body or None, dict(field.split(": ", 1) for field in fields))
    answer = connection.getresponse()
    data = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{first}: {answer.status} {data[:300]!r}")
    return answer.headers, data


def wait_for_bare(server: Server, data: bytes) -> None:
    """Wait until the bare route serves `data`; raises RuntimeError after a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if ask(server, get("/bare/video"))[1] == data:
                return
        except (RuntimeError, OSError):
            pass
        time.sleep(0.2)
    raise RuntimeError("the bare route did not come up")


def hits_that_waited(server: Server, valkeys: Valkeys, route: Route, sent: Tally) -> int:
    """Return how many of ten hits were not answered while both Valkeys were paused.

    Three tries, for a machine that stalls can only make an independent hit look like a waiting one. Listing, which must
    wait, is asked first: if it does not, the pause does not work and RuntimeError is raised.
    """
    if not _in_a_pause(server, valkeys, get("/v1/videos?limit=1"), 1):
        raise RuntimeError("pausing Valkey did not hold up a request that needs it")
    tries = []
    for _ in range(3):
        tries.append(_in_a_pause(server, valkeys, route.request, HITS_IN_A_PAUSE))
        sent.l1_hits += HITS_IN_A_PAUSE
        if not tries[-1]:
            break
    return min(tries)


def _in_a_pause(server: Server, valkeys: Valkeys, request: str, hits: int) -> int:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    for valkey in valkeys:
        valkey.client_pause(round(PAUSE_SECONDS * 1000), all=True)
    over = time.monotonic() + PAUSE_SECONDS
    late = 0
    for _ in range(hits):
        _ask(connection, request)
        late += time.monotonic() > over - 0.02
    connection.close()
    time.sleep(max(0.0, over - time.monotonic()))
    for valkey in valkeys:
        valkey.ping()
    return late


def collect(
    server: Server, valkeys: Valkeys, routes: Sequence[Route], rounds: int, seconds: float, sent: Tally
) -> Samples:
    """Load every route in turn, `rounds` times, every other round backwards."""
    samples: Samples = {(connections, route.name): [] for connections in CONNECTIONS for route in routes}
    for number in range(rounds):
        for connections in CONNECTIONS:
            for route in routes if number % 2 else reversed(routes):
                sample = sampled(valkeys, route, Task(server.port, route.request, connections, seconds))
                samples[connections, route.name].append(sample)
                sent.l1_hits += 0 if route.name == BARE else sample.run.sent
    return samples


def sampled(valkeys: Valkeys, route: Route, task: Task) -> Sample:
    """Load one route once; what it writes behind its answers counts too."""
    cpu, commands = cpu_seconds(route.pid), settled(lambda: commands_of(valkeys))
    run = load(task)
    commands = settled(lambda: commands_of(valkeys)) - commands
    return Sample(run, 1e3 * (cpu_seconds(route.pid) - cpu) / run.sent, commands / run.sent)


def commands_of(valkeys: Valkeys) -> int:
    """Return how many commands the cache's Valkey has run for others; that of job records never stands still."""
    statistics_of = valkeys[0].info("commandstats")
    return sum(counts["calls"] for name, counts in statistics_of.items() if name != "cmdstat_info")


def settled(count: Callable[[], int]) -> int:
    """Return `count()` once it stands still, long enough for what is written behind the answers."""
    last = count()
    while True:
        time.sleep(0.3)
        if (now := count()) == last:
            return now
        last = now


def calls_between_deployments(server: Server, l1_hits: int) -> int:
    """Return how many calls between deployments Serve counted beside the one of `prepare`.

    Metrics come every ten seconds; they are complete when they hold as many hits in L1 as were sent. Raises
    RuntimeError when they never do: then some answers came from elsewhere.
    """
    deadline = time.monotonic() + 45
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics") as answer:
            metrics = answer.read().decode()
        counted = total(metrics, "ray_encore_tier_reads_total", 'tier="l1"', 'result="hit"')
        if counted >= l1_hits:
            break
        if time.monotonic() > deadline:
            raise RuntimeError(f"{l1_hits} hits were sent, but L1 counted {counted}")
        time.sleep(0.5)
    calls = total(metrics, "ray_serve_handle_request_counter_total")
    if counted != l1_hits or not calls:
        raise RuntimeError(f"the counts do not add up: {counted} of {l1_hits} hits, {calls} calls")
    return calls - 1


def total(metrics: str, name: str, *tags: str) -> int:
    """Return the sum of a metric's series that have all `tags`, out of the Prometheus text."""
    series = re.findall(rf"^{name}{{(.*)}} (\S+)$", metrics, re.MULTILINE)
    return round(sum(float(value) for labels, value in series if all(tag in labels for tag in tags)))


def result(samples: Samples, waits: dict[str, int], hops: int, l1_hits: int, size: int) -> Result:
    """Return table, facts and goals."""
    rows = [row(samples, connections, name) for connections, name in samples]
    by = {(line["connections"], line["route"]): line for line in rows}
    goals = []
    for connections in CONNECTIONS:
        at = f"at {connections} connection{'s' if connections > 1 else ''}"
        content, sync = by[connections, CONTENT], by[connections, SYNC]
        goals += [
            Goal.at_most(f"content p50 over bare, {at}", content["x p50"], 1.2),
            Goal.at_least(f"content throughput over bare, {at}", content["x hits/s"], 0.85),
            Goal.at_most(f"sync p50 over bare, {at}", sync["x p50"], 1.5),
        ]
    for name in (CONTENT, SYNC):
        commands = sum(by[connections, name]["Valkey commands/hit"] for connections in CONNECTIONS)
        goals.append(Goal.exactly(f"Valkey commands of a hit, {name}", commands, 0))
    goals += [Goal.exactly(f"of 10 hits waiting for Valkey, {name}", late, 0) for name, late in waits.items()]
    goals.append(Goal.exactly("calls between deployments", hops, 0))
    return Result(rows, goals, {"video, bytes": size, "hits in L1": l1_hits, "calls between deployments": hops})


def row(samples: Samples, connections: int, name: str) -> Row:
    """Return one line of the table: medians over the rounds, ratios to the bare route within each round."""
    mine, bares = samples[connections, name], samples[connections, BARE]

    def ratio(of: Callable[[Run], float]) -> float:
        return statistics.median(of(a.run) / of(b.run) for a, b in zip(mine, bares, strict=True))

    return {
        "connections": connections,
        "route": name,
        "p50 ms": statistics.median(sample.run.percentile(0.5) for sample in mine),
        "p99 ms": statistics.median(sample.run.percentile(0.99) for sample in mine),
        "hits/s": statistics.median(sample.run.throughput for sample in mine),
        "x p50": ratio(lambda run: run.percentile(0.5)),
        "x hits/s": ratio(lambda run: run.throughput),
        "CPU ms/hit": statistics.median(sample.cpu_ms for sample in mine),
        "Valkey commands/hit": statistics.mean(sample.commands for sample in mine),
    }


def draw(axes: Any, result: Result) -> None:
    """Draw p50 of each route, with p99 as a whisker, at either number of connections."""
    for place, connections in enumerate(CONNECTIONS):
        rows = [line for line in result.rows if line["connections"] == connections]
        where = [number + 0.4 * (place - 0.5) for number in range(len(rows))]
        p50 = [line["p50 ms"] for line in rows]
        above = [line["p99 ms"] - line["p50 ms"] for line in rows]
        axes.bar(
            where,
            p50,
            0.38,
            yerr=[[0] * len(rows), above],
            capsize=3,
            label=f"{connections} connection{'s' if connections > 1 else ''}",
        )
    axes.set_xticks(range(len(rows)), [line["route"] for line in rows])
    axes.set_yscale("log")
    axes.set(ylabel="milliseconds (bar p50, whisker p99)", title="A hit in L1 beside a bare Serve route, 300 kB")
    axes.legend()


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", measure, draw))
