"""benchmarks/eviction.py: its traces, its policies, and its goals, which can fail."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # where Python looks when it runs a program there

from benchmarks import eviction, eviction_policies, eviction_traces
from benchmarks.eviction_traces import Trace

HEADER = "gmt_create,predict_type,exec_time_seconds,num_inference_steps\n"


def shares(trace: Trace, percent: float) -> dict[str, dict[str, float]]:
    return {str(row["figure"]): {name: float(row[name]) for name in eviction_policies.POLICIES}
            for row in eviction.played(trace, percent)}  # fmt: skip


def test_a_file_is_read_as_the_issue_says(tmp_path: Path) -> None:
    """The key is everything but time and seconds, requests come in the order of their time."""
    file = tmp_path / "trace.csv"
    rows = [f"2024-01-01 00:00:{second:02},A,{second}.5,{steps}\n" for second, steps in ((3, 30), (1, 20), (2, 30))]
    more = [f"2024-01-02 00:00:00,B,1.0,{number}\n" for number in range(eviction_traces.FEWEST_OBJECTS)]
    file.write_text(HEADER + "".join(rows + more))
    trace = eviction_traces.read_trace(file)
    assert (trace.objects[:3], trace.seconds[:3]) == ([1, 2, 2], [1.5, 2.5, 3.5])
    assert trace.next_uses[:3] == [2**63 - 1, 2, 2**63 - 1]


@pytest.mark.parametrize("text", ["a,b\n1,2\n", HEADER, HEADER + "2024,A,1.0,2\n"])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    """A file without the columns, or with too few objects for the policies, is an error and not a table of noise."""
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"columns|least"):
        eviction_traces.read_trace(file)


def test_made_traces_are_seeded() -> None:
    """The same seed makes the same requests, another one others; an object costs the same each time."""
    first, again, other = (eviction_traces.made_traces(True, seed) for seed in (1, 1, 2))
    assert first == again
    assert first[0].objects != other[0].objects
    costs: dict[int, float] = {}
    assert all(
        costs.setdefault(each, cost) == cost for each, cost in zip(first[0].objects, first[0].seconds, strict=True)
    )


def test_the_policies_on_a_trace_with_one_right_answer() -> None:
    """On a loop larger than the store LRU never hits, and Belady has what a store can have."""
    pytest.importorskip("libcachesim", reason="libcachesim has no wheel for this machine")
    trace = Trace("loop", [number for _ in range(3) for number in range(1, 5001)], [1.0] * 15_000)
    hits = shares(trace, 10)[eviction.HITS]
    assert hits["LRU"] == 0
    assert hits["Belady"] == max(hits.values()) == pytest.approx(100 * 2 * 499 / 15_000, abs=0.2)


def test_gdsf_prefers_what_is_dear_and_wanted() -> None:
    """With two prices and equal popularity it saves more seconds than LRU, and the simulator's LRU is the naive one."""
    simulator = pytest.importorskip("libcachesim", reason="libcachesim has no wheel for this machine")
    rng = random.Random(3)
    objects = [rng.randrange(1, 5001) for _ in range(30_000)]
    trace = Trace("even", objects, [100.0 if each % 10 == 0 else 1.0 for each in objects])
    saved = shares(trace, 5)[eviction.SECONDS]
    assert saved["GDSF"] > 2 * saved["LRU"]
    naive = eviction_policies.lru(250)
    theirs = eviction_policies._simulated(lambda module, size: simulator.LRU(size))(250)
    assert [naive(each, 1.0, 0) for each in objects] == [theirs(each, 1.0, 0) for each in objects]


def test_goals_can_be_unmet() -> None:
    """A policy behind LRU, or far from the ceiling, is told so."""
    row = {"trace": "trace", "store %": 1.0, "objects": 10, "LRU": 20.0, "GDSF": 19.0, "Belady": 25.0}
    goals = eviction.goals([row | {"figure": figure} for figure in (eviction.HITS, eviction.SECONDS)])
    assert [goal.met for goal in goals] == [False, False, False]
    good = row | {"GDSF": 22.0}
    assert all(
        goal.met for goal in eviction.goals([good | {"figure": each} for each in (eviction.HITS, eviction.SECONDS)])
    )
