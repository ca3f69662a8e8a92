"""Does a shop that warms its templates before a launch serve the launch from the cache?

    python benchmarks/scenario_shop.py

The shop knows its hundred templates: ten pictures of its products, each for ten occasions. Before the launch they are
warmed with `encore warm`, the command, from a YAML file; in the middle it is stopped with Ctrl-C and run again, as
people do. Then comes the first hour of the launch, compressed, on a local server with three routers and two diffusion
replicas: 19 of 20 requests are for something of the hundred (Zipf, and typed in many ways), the others are wishes of
customers' own, few of them twice. That mix is this benchmark's assumption, and it decides the hit ratio; what the
server owes is that nothing warmed is rendered again, and that every answer has the bytes of a run without any cache.
Beside it the same hour on the same server, started anew and not warmed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import scenario_stream
import yaml
from form import Goal, Result, Row, main
from scenario_replay import HITS, Replay, percentile, replayed, saturated
from scenario_stream import Fields, Request, Stream
from server import ROOT
from sizes import SMALLEST
from storm import teller
from storm_reference import reference
from storm_server import TORCH_THREADS, StormServer, storm_server

COLD, WARMED = "not warmed", "warmed"
VIDEO: Fields = {"size": SMALLEST, "num_frames": 8, "fps": 8, "num_inference_steps": 2, "guidance_scale": 1}
PRODUCTS = (
    "a red heart growing", "a yellow star spinning", "a blue circle bouncing", "a green triangle rising slowly",
    "a purple square shrinking", "a pink heart bouncing", "an orange star falling slowly", "a cyan cross spinning",
    "a red square standing still", "a blue star growing",
)  # fmt: skip
OCCASIONS = (
    "for the birthday", "for the wedding", "for the new baby", "for the summer sale", "for the winter sale",
    "for the weekend", "for the holidays", "for the grand opening", "for our members", "for the last chance",
)  # fmt: skip
TEMPLATE = "{product} on a white background, {occasion}"
OWN_SHARE = 0.95
HIT_RATIO = 0.92


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured: requests of the hour, seconds it lasts, products and occasions."""

    requests: int
    seconds: float
    products: int
    occasions: int


FULL = Size(1_000, 60.0, 10, 10)
QUICK = Size(300, 15.0, 5, 4)


@dataclass(frozen=True, slots=True)
class Warmed:
    """What two runs of `encore warm`, the first one interrupted, and a dry run between them said."""

    total: int
    at_interrupt: int
    there: int
    rendered: int
    failed: int
    exit_code: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Figures(Result):
    """What was measured, with the series that the picture shows."""

    cold: Replay | None = None
    warmed: Replay | None = None


def measure(quick: bool) -> Result:
    """Run everything, telling how far it is."""
    size, say = QUICK if quick else FULL, teller()
    stream, own = launch(size, random.Random(5))
    say(f"{len(stream.labels)} videos without a cache ...")
    digests = reference(stream.labels, TORCH_THREADS)
    say("starting three routers and two diffusion replicas ...")
    with storm_server() as server:
        say("the hour, not warmed ...")
        asyncio.run(saturated(server, [{**VIDEO, "prompt": f"before all else {n}", "seed": n} for n in range(8)]))
        cold = asyncio.run(replayed(server, stream, say))
    say("starting them anew ...")
    with storm_server() as server:
        said = warm(server, size, say)
        say("the hour, warmed ...")
        warmed = asyncio.run(replayed(server, stream, say))
    return result(stream, own, digests, cold, warmed, said)


def template_file(size: Size) -> dict[str, Any]:
    """Return what the shop writes into its file: a template a product, the occasions as its variable."""
    return {
        "ttl": "3d",
        "templates": [
            {
                "prompt": TEMPLATE.replace("{product}", product),
                "variables": {"occasion": list(OCCASIONS[: size.occasions])},
                **VIDEO,
            }
            for product in PRODUCTS[: size.products]
        ],
    }


def launch(size: Size, rng: random.Random) -> tuple[Stream, int]:
    """Return the hour, and how many of its labels, the first ones, are the shop's own."""
    own = scenario_stream.template_prompts(template_file(size)["templates"])
    rng.shuffle(own)
    wishes = scenario_stream.free_prompts(size.requests // 20, rng)
    labels = [{"prompt": prompt, **VIDEO} for prompt in [*own, *wishes]]
    popular = [1 / (rank + 1) for rank in range(len(own))]
    requests = []
    for at in sorted(rng.random() * size.seconds for _ in range(size.requests)):
        if rng.random() < OWN_SHARE:
            (label,) = rng.choices(range(len(own)), popular)
        else:
            label = rng.randrange(len(own), len(labels))
        fields = labels[label] if rng.random() < 0.5 else scenario_stream.varied(dict(labels[label]), rng)
        requests.append(Request(at, label, fields))
    return Stream(requests, labels), len(own)


def warm(server: StormServer, size: Size, say: Callable[[str], None]) -> Warmed:
    """Run `encore warm`, interrupt it when some videos are made, run it again."""
    with tempfile.TemporaryDirectory(prefix="encore-") as folder:
        file = Path(folder) / "templates.yaml"
        file.write_text(yaml.safe_dump(template_file(size)))
        before, began = len(server.renders()), time.monotonic()
        first = _start(server, file)
        while len(server.renders()) - before < size.products * size.occasions // 3 and first.poll() is None:
            time.sleep(0.05)
        first.send_signal(signal.SIGINT)
        first.communicate()
        at_interrupt = len(server.renders()) - before
        say(f"`encore warm` stopped by Ctrl-C after {at_interrupt} renders began; again ...")
        second = _start(server, file)
        told = json.loads(second.communicate()[0])
        seconds = time.monotonic() - began
    say(f"`encore warm`: {told}")
    return Warmed(
        told["total"], at_interrupt, told["there"], told["rendered"], told["failed"], first.returncode, seconds
    )


def _start(server: StormServer, file: Path) -> subprocess.Popen[str]:
    # A program that a script runs in the background inherits SIGINT ignored; a terminal's does not.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from serve_app.cli import main; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, "warm", str(file), "--json", "--url", f"http://127.0.0.1:{server.port}"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def result(stream: Stream, own: int, digests: Sequence[str], cold: Replay, warmed: Replay, said: Warmed) -> Figures:
    """Return table, facts and goals."""
    asked = {request.label for request in stream.requests}
    wishes = len([label for label in asked if label >= own])
    for_own = [each for each in warmed.served if each.request.label < own]
    facts: Row = {
        "the hour lasts, s": stream.requests[-1].at,
        "videos warmed": said.total,
        "hits in the first hour, not warmed": sum(each.outcome in HITS for each in cold.served) / len(cold.served),
        "renders begun when Ctrl-C came": said.at_interrupt,
        "exit status of the interrupted command": said.exit_code,
        "there already when it was run again": said.there,
        "warming took, with the interruption, s": said.seconds,
        "mean ms, warmed over not": fmean(warmed.latencies) / fmean(cold.latencies),
        "p99 ms, warmed over not": percentile(warmed.latencies, 0.99) / percentile(cold.latencies, 0.99),
        "asked again": sum(one.asked_again for one in [*cold.served, *warmed.served]),
    }
    found = sum(each.outcome in HITS for each in warmed.served)
    goals = [
        Goal.at_least("hits in the first hour, warmed (l1, l2, l3)", found / len(warmed.served), HIT_RATIO),
        Goal.exactly(
            "hits / requests for what was warmed", sum(each.outcome in HITS for each in for_own) / len(for_own), 1
        ),
        Goal.exactly("renders, warmed, one for each wish", warmed.renders, wishes),
        Goal.exactly("renders, not warmed, one for each label", cold.renders, len(asked)),
        Goal.exactly("warm-up: there + rendered, after the interruption", said.there + said.rendered, said.total),
        Goal.at_least("there already after the interruption", said.there, 1),
        Goal.exactly("wrong answers", cold.wrong(digests) + warmed.wrong(digests), 0),
    ]
    return Figures([cold.row(COLD), warmed.row(WARMED)], goals, facts, cold, warmed)


def draw(axes: Any, result: Result) -> None:
    """Draw renders over the hour, and how long answers took."""
    assert isinstance(result, Figures)
    assert result.cold is not None
    assert result.warmed is not None
    figure = axes.figure
    axes.remove()
    figure.set_size_inches(11, 4.5)
    hour, waits = figure.subplots(1, 2)
    last = result.cold.served[-1].request.at
    for replay, name, colour in ((result.cold, COLD, "tab:gray"), (result.warmed, WARMED, "tab:orange")):
        made = sorted(60 * each.request.at / last for each in replay.served if each.rendered)
        hour.step([0, *made, 60], [0, *range(1, len(made) + 1), len(made)], where="post", color=colour, label=name)
        latencies = replay.latencies
        shares = [100 * (number + 1) / len(latencies) for number in range(len(latencies))]
        waits.plot([1e3 * each for each in latencies], shares, color=colour, label=name)
    title = f"The first hour of a launch: {len(result.cold.served):,} requests"
    hour.set(xlabel="minute", ylabel="renders so far", title=title)
    hour.legend(fontsize=8)
    waits.set(xscale="log", xlabel="ms from when it was due", ylabel="% of requests answered", title="Waiting")
    waits.legend(fontsize=8)


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", measure, draw))
