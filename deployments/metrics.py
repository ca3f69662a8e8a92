"""Events to Ray's Prometheus endpoint: the one place that knows metric names.

An Observer for serve_app.telemetry, made once per replica. Ray exports each name as `ray_<name>` and appends `_total`
to counters; Serve adds the tags `deployment`, `replica` and `application` by itself. Tags here are closed sets of
words (outcome, tier, kind, result, phase), never a key, a prompt or a user: the number of time series stays bounded.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ray.serve import metrics

from serve_app.telemetry import (
    Answered,
    BreakerTurned,
    EmbeddingServed,
    Encoded,
    Event,
    Evicted,
    Rendered,
    StepRun,
    Telemetry,
    TierRead,
    TierWritten,
)

logger = logging.getLogger(__name__)

SECONDS = (
    0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip
"""Bucket boundaries: an L1 hit takes a fraction of a millisecond, a render up to ten minutes."""

BATCH_SIZES = (*(size + 0.5 for size in range(9)), 16.5, 32.5)
"""Bucket boundaries of the jobs in one forward pass.

Ray's exporter rebuilds a histogram's `_sum` from the middles of its buckets; around whole numbers up to 8 it is exact.
"""


@dataclass(frozen=True, slots=True)
class Instruments:
    """How instruments are made; Ray's, unless a test listens in."""

    counter: Callable[..., metrics.Counter] = metrics.Counter
    histogram: Callable[..., metrics.Histogram] = metrics.Histogram
    gauge: Callable[..., metrics.Gauge] = metrics.Gauge


class ServeMetrics:
    """Counts every event; call it with one (an Observer), or `record` many at the price of fewer calls into Ray."""

    def __init__(self, instruments: Instruments | None = None) -> None:
        self._make = instruments or Instruments()
        self._sums: defaultdict[tuple[metrics.Counter, tuple[tuple[str, str], ...]], float] = defaultdict(float)
        self._requests = self._counter("requests", "Requests for a video, by how they were answered", "outcome")
        self._request_seconds = self._seconds("request_seconds", "From request to answer", "outcome")
        self._bytes_served = self._counter("bytes_served", "Bytes of video handed to callers", "outcome")

        self._tier_reads = self._counter("tier_reads", "Look-ups in a cache tier", "tier", "kind", "result")
        self._tier_read_seconds = self._seconds("tier_read_seconds", "Look-up in a cache tier", "tier", "kind")
        self._tier_read_bytes = self._counter("tier_read_bytes", "Bytes read from a cache tier", "tier", "kind")
        self._tier_writes = self._counter("tier_writes", "Values given to a cache tier", "tier", "kind", "result")
        self._tier_write_seconds = self._seconds("tier_write_seconds", "Store into a cache tier", "tier", "kind")
        self._tier_write_bytes = self._counter("tier_write_bytes", "Bytes stored in a cache tier", "tier", "kind")
        self._evictions = self._counter("evictions", "Entries dropped to stay within a tier's bound", "tier")
        self._evicted_bytes = self._counter("evicted_bytes", "Bytes dropped to stay within a tier's bound", "tier")

        self._breaker_open = self._gauge("breaker_open", "1 while a tier is left alone", "tier", "asked")
        self._breaker_turns = self._counter("breaker_turns", "Breakers opened and closed", "tier", "asked", "state")

        self._embeddings = self._counter("embeddings", "Prompt embeddings served: hit or miss", "result")
        self._renders = self._counter("renders", "Renders, by how they ended", "result")
        self._render_seconds = self._seconds("render_seconds", "Time of one render by phase", "phase")
        self._render_steps = self._counter("render_steps", "Denoising steps of renders that ended")
        self._step_seconds = self._seconds("step_seconds", "One forward pass of the denoiser")
        self._step_batch_size = self._histogram("step_batch_size", "Jobs in one forward pass", BATCH_SIZES)
        self._encode_seconds = self._seconds("encode_seconds", "Encoding one file")
        self._encoded_bytes = self._counter("encoded_bytes", "Bytes of files encoded")

    def __call__(self, event: Event) -> None:
        """Record `event`."""
        self.record((event,))

    def record(self, events: Iterable[Event]) -> None:
        """Record `events`: what only adds up is told to Ray once, as a sum."""
        for event in events:
            self._take(event)
        sums, self._sums = self._sums, defaultdict(float)
        for (counter, tags), value in sums.items():
            if value:  # Ray refuses an increment of zero
                counter.inc(value, dict(tags))

    def _take(self, event: Event) -> None:
        match event:
            case Answered():
                self._answered(event)
            case TierRead():
                self._tier_read(event)
            case TierWritten():
                self._tier_written(event)
            case Evicted(tier=tier, count=count, bytes=size):
                self._add(self._evictions, count, tier=tier)
                self._add(self._evicted_bytes, size, tier=tier)
            case BreakerTurned(tier=tier, asked=asked, state=state):
                self._breaker_open.set(float(state == "open"), {"tier": tier, "asked": asked})
                self._add(self._breaker_turns, 1, tier=tier, asked=asked, state=state)
            case EmbeddingServed(result=result):
                self._add(self._embeddings, 1, result=result)
            case Rendered():
                self._rendered(event)
            case StepRun(batch_size=batch_size, seconds=seconds):
                self._step_batch_size.observe(batch_size, {})
                self._step_seconds.observe(seconds, {})
            case Encoded(seconds=seconds, bytes=size):
                self._encode_seconds.observe(seconds, {})
                self._add(self._encoded_bytes, size)

    def _answered(self, event: Answered) -> None:
        self._add(self._requests, 1, outcome=event.outcome)
        self._request_seconds.observe(event.seconds, {"outcome": event.outcome})
        self._add(self._bytes_served, event.bytes, outcome=event.outcome)

    def _tier_read(self, event: TierRead) -> None:
        self._add(self._tier_reads, 1, tier=event.tier, kind=event.kind, result=event.result)
        if event.tier != "l1":  # a look-up in a dict; its time says nothing
            self._tier_read_seconds.observe(event.seconds, {"tier": event.tier, "kind": event.kind})
        self._add(self._tier_read_bytes, event.bytes, tier=event.tier, kind=event.kind)

    def _tier_written(self, event: TierWritten) -> None:
        self._add(self._tier_writes, 1, tier=event.tier, kind=event.kind, result=event.result)
        self._tier_write_seconds.observe(event.seconds, {"tier": event.tier, "kind": event.kind})
        if event.result == "stored":
            self._add(self._tier_write_bytes, event.bytes, tier=event.tier, kind=event.kind)

    def _rendered(self, event: Rendered) -> None:
        self._add(self._renders, 1, result=event.result)
        self._render_seconds.observe(event.queue_seconds, {"phase": "queue"})
        self._render_seconds.observe(event.denoise_seconds, {"phase": "denoise"})
        self._render_seconds.observe(event.decode_seconds, {"phase": "decode"})
        self._add(self._render_steps, event.steps)

    def _add(self, counter: metrics.Counter, value: float, **tags: str) -> None:
        self._sums[counter, tuple(tags.items())] += value

    def _counter(self, name: str, description: str, *tags: str) -> metrics.Counter:
        return self._make.counter(f"encore_{name}", description=description, tag_keys=tags)

    def _gauge(self, name: str, description: str, *tags: str) -> metrics.Gauge:
        return self._make.gauge(f"encore_{name}", description=description, tag_keys=tags)

    def _seconds(self, name: str, description: str, *tags: str) -> metrics.Histogram:
        return self._histogram(name, description, SECONDS, *tags)

    def _histogram(self, name: str, description: str, boundaries: tuple[float, ...], *tags: str) -> metrics.Histogram:
        return self._make.histogram(
            f"encore_{name}", description=description, boundaries=list(boundaries), tag_keys=tags
        )


class MetricsThread:
    """An Observer that costs its caller next to nothing: events are queued, and a thread records them in bulk.

    One record of a Ray metric takes about 30 µs (tags are merged, checked and handed to C++), and a hit in memory made
    six: more than all else that Encore does for a hit. What a killed replica had queued, a fraction of a second's, is
    lost.
    """

    def __init__(self, recorder: ServeMetrics, interval_seconds: float = 0.25) -> None:
        self._recorder = recorder
        self._interval_seconds = interval_seconds
        self._queue: deque[Event] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="encore-metrics", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Queue `event`; from any thread."""
        self._queue.append(event)

    def close(self) -> None:
        """Record what is queued and end the thread."""
        self._stop.set()
        self._thread.join()
        self._record()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_seconds):
            try:
                self._record()
            except Exception:
                logger.exception("metrics could not be recorded")

    def _record(self) -> None:
        # Only as many as there are now: others are appended meanwhile, and `popleft` of a deque is atomic.
        self._recorder.record([self._queue.popleft() for _ in range(len(self._queue))])


def replica_telemetry() -> Telemetry:
    """Return the telemetry of one replica, connected to Ray's metrics."""
    return Telemetry(MetricsThread(ServeMetrics()))
