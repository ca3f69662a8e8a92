"""Is a video rendered once in the whole cluster, whoever asks and whoever dies?

    python benchmarks/storm.py

On a local server with three routers and two diffusion replicas: 1,000 identical requests at once; the same while the
router that leads, or the diffusion replica that renders, is killed (SIGKILL), or while the client that came first hangs
up; then 1,000 requests over 50 videos in a minute, in which every second one router or diffusion replica, chosen at
random of those that are up, is killed. Killed replicas take seconds to come back, so some seconds find nobody to kill.
Renders are noted as they begin, by the engine's own process, where no kill can undo it (`storm_app.py`). Who loses a
connection asks again, and everybody must get the bytes of a run without any cache (`storm_reference.py`).

In the same run the peers: cashews and aiocache on two uvicorn workers over one Valkey, and nginx, each with a render
that is 20 s of sleep (`storm_peers.py`, `storm_nginx.py`). And what the cache path adds to a miss (`storm_miss.py`).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import storm_miss
import storm_nginx
import storm_peers
import storm_scenarios
from form import Goal, Result, Row, main
from storm_clients import Fields
from storm_miss import Added, percentile
from storm_reference import reference
from storm_scenarios import CHAOS, CLIENT, DIFFUSION, ENCORE, IDENTICAL, ROUTER, Extent, Scenarios, Storm
from storm_server import TORCH_THREADS, storm_server

from serve_app.flight.record import LEASE_SECONDS

TAKEOVER_SECONDS = LEASE_SECONDS + 1.0
ADDED_MS = 20.0
RENDERS = {IDENTICAL: 1, ROUTER: 1, DIFFUSION: 2, CLIENT: 1}


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured: Encore's storms, the misses, the peers' requests and render, and whether nginx is asked."""

    extent: Extent
    misses: int
    peers_requests: int
    peers_seconds: float
    nginx: bool


FULL = Size(storm_scenarios.FULL, 400, 1_000, 20.0, nginx=True)
QUICK = Size(storm_scenarios.QUICK, 100, 200, 3.0, nginx=False)


def measure(quick: bool) -> Result:
    """Run everything, telling how far it is."""
    size, say = QUICK if quick else FULL, teller()
    videos = requests(size.extent)
    say("the same videos without a cache ...")
    digests = reference(videos, TORCH_THREADS)
    say("a miss, with the cache path and without ...")
    added = storm_miss.measure(size.misses)
    say("starting three routers and two diffusion replicas ...")
    with storm_server() as server:
        storms = asyncio.run(ours(Scenarios(server, size.extent, say), videos, digests))
    storms += asyncio.run(storm_peers.storms(size.peers_requests, size.peers_seconds, say))
    skipped = "not with --quick" if not size.nginx else storm_nginx.missing()
    if not skipped:
        storms += asyncio.run(storm_nginx.storms(size.peers_requests, size.peers_seconds, say))
    return result(storms, added, size, skipped)


def teller() -> Callable[[str], None]:
    """Return what prints a line with the seconds since now."""
    began = time.monotonic()
    return lambda text: print(f"{time.monotonic() - began:5.0f} s  {text}", flush=True)


def requests(extent: Extent) -> list[Fields]:
    """Return a large video for each of the four storms of identical requests, then those of the random kills."""
    large = [{**extent.fields, "prompt": f"a red circle moves left {n}", "seed": n} for n in range(4)]
    small = [{**extent.small, "prompt": f"a blue star falls {n}", "seed": n} for n in range(extent.keys)]
    return large + small


async def ours(scenarios: Scenarios, videos: Sequence[Fields], digests: Sequence[str]) -> list[Storm]:
    """Run the five storms, one after the other."""
    await scenarios.warm_up()
    kinds = (scenarios.identical, scenarios.router_killed, scenarios.renderer_killed, scenarios.client_gone)
    storms = [await kind(videos[number], digests[number]) for number, kind in enumerate(kinds)]
    return [*storms, await scenarios.chaos(videos[len(kinds) :], digests[len(kinds) :])]


def result(storms: Sequence[Storm], added: Added, size: Size, nginx_skipped: str) -> Result:
    """Return table, facts and goals."""
    by = {storm.scenario: storm for storm in storms if storm.system == ENCORE}
    facts: Row = {
        "added to a miss, ms, p50": percentile(added.misses, 0.5),
        "added to a miss, ms, p99": percentile(added.misses, 0.99),
        "the same without the cache path, ms, p99": percentile(added.direct, 0.99),
        "from a renderer's death to the next one's beginning, s": by[DIFFUSION].takeover_seconds,
        "render of a peer, s": size.peers_seconds,
    }
    for storm in by.values():
        if storm.again:
            facts[f"asked again, {storm.scenario}"] = ", ".join(f"{why}: {n}" for why, n in storm.again.items())
    if nginx_skipped:
        facts["nginx"] = nginx_skipped
    return Result([storm.row() for storm in storms], goals(by, added, size.extent), facts)


def goals(by: Mapping[str, Storm], added: Added, extent: Extent) -> list[Goal]:
    """Return what must hold for Encore; peers are shown, not judged."""
    chaos = by[CHAOS]
    return [
        *(Goal.exactly(f"renders, {scenario}", by[scenario].renders, count) for scenario, count in RENDERS.items()),
        Goal.at_most(f"renders, {CHAOS}, keys and kills allow", chaos.renders, extent.keys + len(chaos.kills)),
        Goal.at_least(f"kills that struck, {CHAOS}", len(chaos.kills), extent.seconds / 8),
        Goal.exactly("wrong answers", sum(storm.wrong for storm in by.values()), 0),
        Goal.exactly("not answered", sum(storm.requests - storm.answered for storm in by.values()), 0),
        Goal.at_most("seconds until a dead renderer is replaced", by[DIFFUSION].takeover_seconds, TAKEOVER_SECONDS),
        Goal.at_most("ms added to a miss, p99", percentile(added.misses, 0.99), ADDED_MS),
    ]


def draw(axes: Any, result: Result) -> None:
    """Draw the renders of every storm, on a logarithmic scale: ours above, the peers' below."""
    rows = list(reversed(result.rows))
    labels = [f"{row['system']}: {row['scenario']}" for row in rows]
    colours = ["tab:blue" if row["system"] == ENCORE else "tab:gray" for row in rows]
    bars = axes.barh(labels, [row["renders"] for row in rows], color=colours)
    axes.bar_label(bars, [f" {row['renders']} of {row['requests']} requests" for row in rows], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(0.8, 10 * max(row["renders"] for row in rows))
    axes.set(xlabel="renders", title="Renders that a storm of requests makes")
    axes.tick_params(axis="y", labelsize=8)


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", measure, draw))
