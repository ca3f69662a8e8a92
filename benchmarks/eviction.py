"""Does the store keep what saves most? GDSF against LRU, SIEVE, S3-FIFO, W-TinyLFU and Belady's clairvoyance.

    python benchmarks/eviction.py [--trace FILE]

FILE is a CSV in the form of Alibaba's cluster-trace-v2026-GenAI; a request is what all columns but its time and its
execution seconds say, and those seconds are what a hit saves. Without it only made traces are played: Zipf, Zipf with
scans, a loop, bursts. GDSF is the object that the server uses. Stores hold 0.5, 1, 5 and 10 % of a trace's objects;
traces tell no sizes, so every object counts one and only seconds and frequency tell values apart.

In `bursts` an object lives for a short while and never comes back, so LRU is right by construction and whoever holds on
to what was dear is not; it is shown for that, and no goal is set on it.

Belady's minimum has the most hits; the most seconds may be a little more. LRU is a naive one of ours, SIEVE, S3-FIFO,
W-TinyLFU and Belady are libcachesim's.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eviction_policies import POLICIES
from eviction_traces import Trace, made_traces, read_trace
from form import Goal, Result, Row, main

SEED = 2026
PERCENTS = (0.5, 1.0, 5.0, 10.0)
HITS, SECONDS = "hits %", "seconds saved %"


def measure(quick: bool, file: Path | None) -> Result:
    traces = [*([] if file is None else [read_trace(file)]), *made_traces(quick, SEED)]
    began = time.process_time()
    rows = [row for trace in traces for percent in PERCENTS for row in played(trace, percent)]
    facts: Row = {f"{trace.name}: requests, objects": f"{len(trace.objects)}, {trace.distinct}" for trace in traces}
    if file is not None:
        repeats = 100 * (1 - traces[0].distinct / len(traces[0].objects))
        facts["trace: hits % of a store without bound"] = repeats
    facts["CPU seconds"] = time.process_time() - began
    return Result(rows, goals(rows), facts)


def played(trace: Trace, percent: float) -> list[Row]:
    """Return the shares of hits and of seconds saved of every policy, for a store of `percent` of the objects."""
    objects = round(trace.distinct * percent / 100)
    rows: list[Row] = [
        {"trace": trace.name, "store %": percent, "objects": objects, "figure": figure} for figure in (HITS, SECONDS)
    ]
    next_uses = trace.next_uses
    for name, policy in POLICIES.items():
        ask = policy(objects)
        hits = list(map(ask, trace.objects, trace.seconds, next_uses))
        saved = sum(seconds for hit, seconds in zip(hits, trace.seconds, strict=True) if hit)
        rows[0][name] = 100 * sum(hits) / len(hits)
        rows[1][name] = 100 * saved / sum(trace.seconds)
    return rows


def goals(rows: Sequence[Row]) -> list[Goal]:
    """GDSF is behind LRU on none but `bursts`, and near the ceiling where a real trace was given."""
    found = []
    for figure in (HITS, SECONDS):
        ahead = [_ahead(row) for row in rows if row["figure"] == figure and row["trace"] != "bursts"]
        found.append(Goal.at_least(f"GDSF less LRU, {figure}, the least", min(ahead), 0.0))
    for row in rows:
        if (row["trace"], row["store %"], row["figure"]) == ("trace", 1.0, SECONDS):
            share = float(row["GDSF"]) / float(row["Belady"])
            found.append(Goal.at_least("trace, 1 %: GDSF's seconds over Belady's", share, 0.84))
    return found


def _ahead(row: Row) -> float:
    return float(row["GDSF"]) - float(row["LRU"])


def draw(axes: Any, result: Result) -> None:
    names = list(dict.fromkeys(str(row["trace"]) for row in result.rows))
    places = axes.figure.subplots(1, len(names), sharex=True)
    axes.remove()
    for place, name in zip(places, names, strict=True):
        rows = [row for row in result.rows if (row["trace"], row["figure"]) == (name, SECONDS)]
        for policy in POLICIES:
            style = {"GDSF": "o-", "Belady": "k--"}.get(policy, ".-")
            place.plot([row["store %"] for row in rows], [row[policy] for row in rows], style, label=policy)
        place.set(title=name, xscale="log", xlabel="store, % of objects")
        place.set_xticks(PERCENTS, [f"{percent:g}" for percent in PERCENTS], minor=False)
        place.minorticks_off()
    places[0].set_ylabel(SECONDS)
    places[0].legend(fontsize=7)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--trace", type=Path)
    own, others = parser.parse_known_args()
    sys.exit(main(__doc__ or "", lambda quick: measure(quick, own.trace), draw, others))
