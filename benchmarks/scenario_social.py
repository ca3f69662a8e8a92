"""What does a social platform save, whose users ask for what others asked before, in their own words?

    python benchmarks/scenario_social.py

5,000 requests of a day, replayed with a compressed clock against a local server with three routers and two diffusion
replicas, at most 64 at a time: 40 % mean something new, 30 % repeat an earlier request letter by letter, 30 % mean what
an earlier one meant in another way of typing (`scenario_stream.py`; what was asked for often is asked for more often).
Half of what is asked for comes out of the platform's own templates. Each request is labelled with its meaning, so the
fewest renders possible are known, and every answer's bytes are compared with a run without any cache
(`storm_reference.py`).

Beside it, in the same run: the same server when every request must be rendered (a sample of 300 requests, each with a
seed of its own, 64 at a time; the diffusion time of the whole day follows in proportion), a cache that knows requests
only letter by letter (simulated: the same stream through a queue with the measured times), and the server whose
templates were warmed before the day, all of their combinations, with `POST /v1/cache/warm`.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import scenario_stream
from form import Goal, Result, Row, main
from scenario_replay import CONCURRENCY, PRICE, Replay, Simulated, percentile, replayed, row, saturated, simulated
from scenario_stream import Fields, Request, Stream
from sizes import SMALLEST
from storm import teller
from storm_reference import reference
from storm_server import DIFFUSIONS, TORCH_THREADS, StormServer, storm_server

from serve_app.client import AsyncEncore, WarmUp

ENCORE, NONE, EXACT, WARMED = "Encore", "no cache", "exact strings", "Encore, warmed"
LOAD = 0.5
"""Of what the server can render, over the day's mean; at noon it is half as much again."""
VIDEO: Fields = {"size": SMALLEST, "num_frames": 8, "fps": 8, "num_inference_steps": 2, "guidance_scale": 1}


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured: requests, different labels, how many templates over how many motions, the sample."""

    requests: int
    labels: int
    templates: int
    motions: int
    sample: int


FULL = Size(5_000, 2_000, 3, 9, 300)
QUICK = Size(250, 100, 1, 2, 40)


@dataclass(frozen=True, slots=True)
class Figures(Result):
    """What was measured, with the series that the picture shows."""

    encore: Replay | None = None
    warmed: Replay | None = None
    exact: Simulated | None = None
    sample: Replay | None = None


def measure(quick: bool) -> Result:
    """Run everything, telling how far it is."""
    size, say = QUICK if quick else FULL, teller()
    templates = wanted(size)
    stream, warm_labels = social(size, templates, random.Random(11))
    say(f"{len(stream.labels)} videos without a cache ...")
    digests = reference(stream.labels, TORCH_THREADS)
    say("starting three routers and two diffusion replicas ...")
    with storm_server() as server:
        sample, stream, encore = asyncio.run(cold(server, size, stream, say))
    say("starting them anew, to warm the templates ...")
    with storm_server() as server:
        warm_up, warmed = asyncio.run(warm(server, templates, stream, say))
    hits = [each.seconds for each in encore.served if each.outcome in ("l1", "l2", "l3")]
    exact = simulated(stream, _letters, median(hits), DIFFUSIONS * sample.seconds / len(sample.served))
    return result(stream, warm_labels, digests, sample, encore, exact, warm_up, warmed)


def wanted(size: Size) -> list[dict[str, Any]]:
    """Return the platform's templates as a warm-up takes them."""
    variables = scenario_stream.VARIABLES | {"motion": scenario_stream.MOTIONS[: size.motions]}
    return [
        {"prompt": prompt, "variables": {name: list(values) for name, values in variables.items()}, **VIDEO}
        for prompt in scenario_stream.TEMPLATES[: size.templates]
    ]


def social(size: Size, templates: Sequence[dict[str, Any]], rng: random.Random) -> tuple[Stream, set[int]]:
    """Return the day, in one second, and which labels come out of the templates."""
    own = scenario_stream.template_prompts(templates)
    free = scenario_stream.free_prompts(size.labels - size.labels // 2, rng)
    prompts = [*rng.sample(own, size.labels // 2), *free]
    rng.shuffle(prompts)
    labels = [{"prompt": prompt, **VIDEO} for prompt in prompts]
    repeats = size.requests - size.labels
    kinds = ["new"] * (size.labels - 1) + ["again"] * (repeats // 2) + ["varied"] * (repeats - repeats // 2)
    rng.shuffle(kinds)
    asked: list[tuple[int, Fields]] = []
    unasked = iter(enumerate(labels))
    for kind in ["new", *kinds]:
        if kind == "new":
            asked.append(next(unasked))
        else:
            label, fields = rng.choice(asked)  # who was asked for often is asked for more often
            asked.append((label, fields if kind == "again" else scenario_stream.varied(dict(labels[label]), rng)))
    times = scenario_stream.day(size.requests, rng)
    requests = [Request(at, label, fields) for at, (label, fields) in zip(times, asked, strict=True)]
    templated = set(own)
    return Stream(requests, labels), {number for number, prompt in enumerate(prompts) if prompt in templated}


async def cold(
    server: StormServer, size: Size, stream: Stream, say: Callable[[str], None]
) -> tuple[Replay, Stream, Replay]:
    """Measure what the server can render, then replay the day at that pace."""
    await saturated(server, [{**VIDEO, "prompt": f"before all else {n}", "seed": n} for n in range(8)])
    say(f"{size.sample} requests that must all be rendered ...")
    sampled = [each.fields | {"prompt": f"sample: {each.fields['prompt']}"} for each in stream.requests[: size.sample]]
    sample = await saturated(server, [fields | {"seed": 10**6 + n} for n, fields in enumerate(sampled)])
    pace = len(sample.served) / sample.seconds
    stream = stream.compressed(len(stream.labels) / (LOAD * pace))
    say(f"{pace:.1f} renders/s; a day of {stream.requests[-1].at:.0f} s ...")
    return sample, stream, await replayed(server, stream, say)


async def warm(
    server: StormServer, templates: Sequence[dict[str, Any]], stream: Stream, say: Callable[[str], None]
) -> tuple[WarmUp, Replay]:
    """Warm the templates through the API, then replay the same day."""
    async with AsyncEncore(f"http://127.0.0.1:{server.port}") as encore:
        warm_up = await encore.warm(templates)
        while not warm_up.is_final:
            await asyncio.sleep(1)
            warm_up = await encore.warm_up(warm_up.id)
    say(f"{warm_up.rendered} of {warm_up.total} warmed; the same day ...")
    return warm_up, await replayed(server, stream, say)


def _letters(request: Request) -> str:
    return json.dumps(request.fields, sort_keys=True)


def result(
    stream: Stream,
    warm_labels: set[int],
    digests: Sequence[str],
    sample: Replay,
    encore: Replay,
    exact: Simulated,
    warm_up: WarmUp,
    warmed: Replay,
) -> Figures:
    """Return table, facts and goals."""
    count, labels = len(stream.requests), len(stream.labels)
    each = sample.diffusion_seconds / len(sample.served)
    seconds = stream.requests[-1].at
    rows = [
        row(f"{NONE} (sample)", len(sample.served), sample.renders, 0, sample.latencies, sample.seconds,
            sample.diffusion_seconds),
        row(f"{EXACT} (simulated)", count, exact.renders, count - exact.renders, exact.latencies,
            max(seconds, exact.renders * each / DIFFUSIONS), exact.renders * each),
        encore.row(ENCORE),
        warmed.row(WARMED),
    ]  # fmt: skip
    misses = [one.seconds for one in encore.served if one.rendered]
    hits = [one.seconds for one in encore.served if one.outcome in ("l1", "l2", "l3")]
    facts: Row = {
        "a day lasts, s": seconds,
        "renders/s without a cache, 64 at a time": len(sample.served) / sample.seconds,
        "diffusion s of the day without a cache, from the sample": each * count,
        "of them spent, Encore": encore.diffusion_seconds / (each * count),
        "dollars per GPU-hour": PRICE,
        "hits, p50 ms": 1e3 * median(hits),
        "renders, p50 ms": 1e3 * median(misses),
        "joined": sum(one.outcome == "joined" for one in encore.served),
        "mean ms that 60.4 % hits and misses of 3.2 s make": 0.396 * 3200,
        "templates' combinations warmed before the day": warm_up.total,
        "of them asked for": len(warm_labels),
        "mean ms, warmed over not": fmean(warmed.latencies) / fmean(encore.latencies),
        "p99 ms, warmed over not": percentile(warmed.latencies, 0.99) / percentile(encore.latencies, 0.99),
        "asked again": sum(one.asked_again for one in [*encore.served, *warmed.served]),
    }
    touched = sum(one.rendered and one.request.label in warm_labels for one in warmed.served)
    goals = [
        Goal.exactly(f"renders, {ENCORE}, one for each label", encore.renders, labels),
        Goal.at_least(f"hit ratio, {ENCORE}", encore.hits / count, (count - labels) / count),
        Goal.exactly(f"renders, {WARMED}, one for each other label", warmed.renders, labels - len(warm_labels)),
        Goal.exactly("requests for what was warmed that were rendered", touched, 0),
        Goal.exactly("warm-up failed", warm_up.failed, 0),
        Goal.exactly("wrong answers", encore.wrong(digests) + warmed.wrong(digests), 0),
        Goal.exactly("renders of the sample, one for each request", sample.renders, len(sample.served)),
    ]  # fmt: skip
    return Figures(rows, goals, facts, encore, warmed, exact, sample)


def draw(axes: Any, result: Result) -> None:
    """Draw renders over the day beside the requests, and how long answers took."""
    assert isinstance(result, Figures)
    assert result.encore is not None
    assert result.warmed is not None
    assert result.exact is not None
    assert result.sample is not None
    figure = axes.figure
    axes.remove()
    figure.set_size_inches(11, 4.5)
    day, waits = figure.subplots(1, 2)
    requests = [each.request for each in result.encore.served]
    last = requests[-1].at
    hours = [24 * each.at / last for each in requests]
    day.plot(hours, range(1, len(hours) + 1), color="black", label="requests = renders without a cache")
    seen: dict[str, float] = {}
    for request in requests:
        seen.setdefault(_letters(request), 24 * request.at / last)
    day.plot(sorted(seen.values()), range(1, len(seen) + 1), color="tab:gray", label="renders, exact strings")
    for replay, name, colour in ((result.encore, ENCORE, "tab:blue"), (result.warmed, WARMED, "tab:orange")):
        made = sorted(24 * each.request.at / last for each in replay.served if each.rendered)
        day.plot(made, range(1, len(made) + 1), color=colour, label=f"renders, {name}")
    day.set(xlabel="hour of the day", ylabel="so far", title=f"{len(requests):,} requests, {CONCURRENCY} at a time")
    day.legend(fontsize=8)
    for latencies, name, colour in (
        (result.sample.latencies, f"{NONE} (sample, as fast as answered)", "black"),
        (result.exact.latencies, f"{EXACT} (simulated)", "tab:gray"),
        (result.encore.latencies, ENCORE, "tab:blue"),
        (result.warmed.latencies, WARMED, "tab:orange"),
    ):
        shares = [100 * (number + 1) / len(latencies) for number in range(len(latencies))]
        waits.plot([1e3 * each for each in latencies], shares, color=colour, label=name)
    waits.set(xscale="log", xlabel="ms from when it was due", ylabel="% of requests answered", title="Waiting")
    waits.legend(fontsize=8)


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", measure, draw))
