"""ServeMetrics: which event moves which series, under names that Prometheus and the dashboard know."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import typing
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deployments.metrics import SECONDS, Instruments, MetricsThread, ServeMetrics
from serve_app.core import Outcome
from serve_app.telemetry import (
    Answered,
    BreakerTurned,
    EmbeddingServed,
    Encoded,
    Event,
    Evicted,
    Rendered,
    StepRun,
    TierRead,
    TierWritten,
)

ROOT = Path(__file__).parents[2]
OBSERVABILITY = ROOT / "deployments/observability"

EVENTS: list[Event] = [
    Answered("l1", 0.0004, 300_000),
    TierRead("l2", "video", "hit", 0.002, 300_000),
    TierWritten("l3", "video", "stored", 0.01, 300_000),
    Evicted("l1", 2, 5_000),
    BreakerTurned("l2", "reach", "open"),
    EmbeddingServed("miss"),
    Rendered("completed", 0.5, 20.0, 1.5, 8),
    StepRun(4, 0.25),
    Encoded(0.3, 290_000),
]

Series = tuple[str, tuple[tuple[str, str], ...]]


class Recorder:
    """Stands where Ray's metric classes stand, as strict as they are about tags and increments."""

    def __init__(self) -> None:
        self.kinds: dict[str, str] = {}
        self.boundaries: dict[str, list[float]] = {}
        self.recorded: dict[Series, list[float]] = defaultdict(list)
        self.instruments = Instruments(counter=self._counter, histogram=self._histogram, gauge=self._gauge)

    def _counter(self, name: str, description: str, tag_keys: tuple[str, ...]) -> typing.Any:
        return self._instrument("counter", name, description, tag_keys)

    def _gauge(self, name: str, description: str, tag_keys: tuple[str, ...]) -> typing.Any:
        return self._instrument("gauge", name, description, tag_keys)

    def _histogram(self, name: str, description: str, boundaries: list[float], tag_keys: tuple[str, ...]) -> typing.Any:
        self.boundaries[name] = boundaries
        return self._instrument("histogram", name, description, tag_keys)

    def _instrument(self, kind: str, name: str, description: str, tag_keys: tuple[str, ...]) -> typing.Any:
        assert name not in self.kinds, f"{name} is made twice"
        assert description
        self.kinds[name] = kind
        return RecordedMetric(self, name, tag_keys)


class RecordedMetric:
    """One instrument; it has all verbs, the test of real metrics tells whether the right one is used."""

    def __init__(self, recorder: Recorder, name: str, tag_keys: tuple[str, ...]) -> None:
        self._recorder, self._name, self._tag_keys = recorder, name, tag_keys

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert self._recorder.kinds[self._name] == "counter"
        assert value > 0
        self._record(value, tags)

    def observe(self, value: float, tags: dict[str, str]) -> None:
        assert self._recorder.kinds[self._name] == "histogram"
        self._record(value, tags)

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert self._recorder.kinds[self._name] == "gauge"
        self._record(value, tags)

    def _record(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(self._tag_keys)
        self._recorder.recorded[self._name, tuple(sorted(tags.items()))].append(value)


def record(*events: Event) -> dict[Series, list[float]]:
    recorder = Recorder()
    observer = ServeMetrics(recorder.instruments)
    for event in events:
        observer(event)
    return dict(recorder.recorded)


def series(name: str, **tags: str) -> Series:
    return (f"encore_{name}", tuple(sorted(tags.items())))


EXPECTED: list[dict[Series, list[float]]] = [
    {
        series("requests", outcome="l1"): [1],
        series("request_seconds", outcome="l1"): [0.0004],
        series("bytes_served", outcome="l1"): [300_000],
    },
    {
        series("tier_reads", tier="l2", kind="video", result="hit"): [1],
        series("tier_read_seconds", tier="l2", kind="video"): [0.002],
        series("tier_read_bytes", tier="l2", kind="video"): [300_000],
    },
    {
        series("tier_writes", tier="l3", kind="video", result="stored"): [1],
        series("tier_write_seconds", tier="l3", kind="video"): [0.01],
        series("tier_write_bytes", tier="l3", kind="video"): [300_000],
    },
    {series("evictions", tier="l1"): [2], series("evicted_bytes", tier="l1"): [5_000]},
    {
        series("breaker_open", tier="l2", asked="reach"): [1.0],
        series("breaker_turns", tier="l2", asked="reach", state="open"): [1],
    },
    {series("embeddings", result="miss"): [1]},
    {
        series("renders", result="completed"): [1],
        series("render_seconds", phase="queue"): [0.5],
        series("render_seconds", phase="denoise"): [20.0],
        series("render_seconds", phase="decode"): [1.5],
        series("render_steps"): [8],
    },
    {series("step_batch_size"): [4], series("step_seconds"): [0.25]},
    {series("encode_seconds"): [0.3], series("encoded_bytes"): [290_000]},
]


@pytest.mark.parametrize(
    ("event", "expected"), list(zip(EVENTS, EXPECTED, strict=True)), ids=lambda value: type(value).__name__
)
def test_each_event_moves_its_series_and_no_other(event: Event, expected: dict[Series, list[float]]) -> None:
    """Every event is recorded completely, under its own tags."""
    assert record(event) == expected


def test_every_kind_of_event_is_known() -> None:
    """The tables above cover the whole Event union: a new event needs its metrics."""
    assert {type(event) for event in EVENTS} == set(typing.get_args(Event))


def test_a_closed_breaker_is_zero() -> None:
    """The gauge goes back to 0 when the tier is asked again."""
    assert record(BreakerTurned("l3", "store", "closed"))[series("breaker_open", tier="l3", asked="store")] == [0.0]


def test_nothing_is_counted_as_nothing() -> None:
    """A failed request has no bytes and a miss reads none; Ray refuses to count zero, so nothing is counted."""
    names = {name for name, _ in record(Answered("failed", 1.0, 0), TierRead("l2", "video", "miss", 0.001))}
    assert names == {"encore_requests", "encore_request_seconds", "encore_tier_reads", "encore_tier_read_seconds"}


def test_a_look_in_memory_is_counted_but_not_timed() -> None:
    """The time of a look-up in a dict says nothing, and would be the dearest part of a hit."""
    names = {name for name, _ in record(TierRead("l1", "video", "hit", 1e-6, 10))}
    assert names == {"encore_tier_reads", "encore_tier_read_bytes"}


def test_many_events_are_one_increment() -> None:
    """What only adds up is told to Ray as one sum per series; times are told one by one."""
    recorder = Recorder()
    ServeMetrics(recorder.instruments).record([Answered("l1", 0.001, 5)] * 3)
    series = {name: values for (name, _), values in recorder.recorded.items()}
    assert series == {
        "encore_requests": [3], "encore_bytes_served": [15], "encore_request_seconds": [0.001] * 3
    }  # fmt: skip


def test_the_thread_loses_nothing_that_was_queued() -> None:
    """Events queued from many threads are all recorded by the time `close` returns."""
    recorder = Recorder()
    observer = MetricsThread(ServeMetrics(recorder.instruments), interval_seconds=0.001)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: observer(EmbeddingServed("hit")), range(1_000)))
    observer.close()
    assert sum(recorder.recorded["encore_embeddings", (("result", "hit"),)]) == 1_000


@pytest.mark.parametrize("result", ["exists", "too_large", "error"])
def test_what_was_not_stored_is_not_counted_as_bytes(result: str) -> None:
    """Bytes written are those the tier took."""
    names = {name for name, _ in record(TierWritten("l2", "video", result, 0.1, 10))}
    assert names == {"encore_tier_writes", "encore_tier_write_seconds"}


def test_buckets_reach_from_hits_to_renders() -> None:
    """Times from a fraction of a millisecond to ten minutes fall into different, ascending buckets."""
    assert sorted(set(SECONDS)) == list(SECONDS)
    assert SECONDS[0] < 0.001
    assert SECONDS[-1] >= 600


def metrics_of() -> dict[str, str]:
    recorder = Recorder()
    ServeMetrics(recorder.instruments)
    return recorder.kinds


def exported_names() -> set[str]:
    """Return every name a Prometheus query may use."""
    return {
        f"ray_{name}{suffix}"
        for name, kind in metrics_of().items()
        for suffix in {"counter": ("_total",), "gauge": ("",)}.get(kind, ("_bucket", "_sum", "_count"))
    }


def test_names_do_not_end_in_what_ray_appends() -> None:
    """Ray adds `_total` to counters; a name that had it already would have it twice."""
    assert all(name.startswith("encore_") for name in metrics_of())
    assert not any(name.endswith(("_total", "_bucket", "_sum", "_count")) for name in metrics_of())


def test_the_dashboard_asks_for_what_exists() -> None:
    """Every Encore series in the Grafana dashboard is exported, and every metric is somewhere on it."""
    dashboard = json.loads((OBSERVABILITY / "dashboard.json").read_text())
    asked = "\n".join(t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", []))
    names = set(re.findall(r"ray_encore_\w+", asked))
    assert names <= exported_names()
    shown = {name for name in metrics_of() if any(f"{asked_for}_".startswith(f"ray_{name}_") for asked_for in names)}
    assert shown == set(metrics_of())


def test_the_dashboard_knows_the_outcomes() -> None:
    """The outcomes it filters by are hits in the code's sense."""
    text = (OBSERVABILITY / "dashboard.json").read_text()
    (filtered,) = set(re.findall(r'outcome=~\\"([\w|]+)\\"', text))
    assert set(filtered.split("|")) == {str(outcome) for outcome in Outcome if outcome.is_hit}


def test_the_readme_lists_every_metric() -> None:
    """The table for operators is complete and names nothing that is not there."""
    listed = set(re.findall(r"`ray_(encore_\w+?)(?:_total)?`", (OBSERVABILITY / "README.md").read_text()))
    assert listed - {"encore_x"} == set(metrics_of())


REAL = """
import sys, time, urllib.request
import ray
from deployments.metrics import ServeMetrics
from serve_app.telemetry import Answered, BreakerTurned, Rendered, StepRun
port = int(sys.argv[1])
ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False,
         _metrics_export_port=port, _node_ip_address="127.0.0.1", _system_config={"metrics_report_interval_ms": 500})
observer = ServeMetrics()
for _ in range(3):
    observer(Answered("l1", 0.0004, 100))
observer(Rendered("completed", 0.1, 2.0, 0.3, 8))
observer(BreakerTurned("l2", "reach", "open"))
observer(StepRun(4, 0.25))
page, end = "", time.monotonic() + 60
while time.monotonic() < end and "ray_encore_step_batch_size_count" not in page:
    time.sleep(0.5)
    try:
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    except OSError:
        pass
print(page)
ray.shutdown()
"""


@pytest.mark.cluster
def test_prometheus_sees_them() -> None:
    """A real Ray node exports the series under the names that README and dashboard use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run = subprocess.run([sys.executable, "-c", REAL, str(port)], capture_output=True, text=True, timeout=180, cwd=ROOT)
    assert run.returncode == 0, run.stderr[-3000:]
    page = [line for line in run.stdout.splitlines() if line.startswith("ray_encore_")]

    def value(name: str, *tags: str) -> list[float]:
        lines = (line for line in page if line.startswith(name + "{") and all(tag in line for tag in tags))
        return [float(line.rpartition(" ")[2]) for line in lines]

    assert value("ray_encore_requests_total", 'outcome="l1"') == [3.0]
    assert value("ray_encore_bytes_served_total", 'outcome="l1"') == [300.0]
    assert value("ray_encore_render_seconds_count", 'phase="denoise"') == [1.0]
    assert value("ray_encore_render_seconds_bucket", 'phase="denoise"', 'le="1.0"') == [0.0]
    assert value("ray_encore_render_seconds_bucket", 'phase="denoise"', 'le="2.5"') == [1.0]
    assert value("ray_encore_breaker_open", 'tier="l2"', 'asked="reach"') == [1.0]
    assert value("ray_encore_step_batch_size_sum") == [4.0]
    assert {re.split(r"[{ ]", line)[0] for line in page} <= exported_names()
