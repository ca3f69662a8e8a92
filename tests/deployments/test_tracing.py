"""Spans reach a real OTLP collector through the hook Serve calls, and say nothing they must not."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from ray.serve._private.tracing_utils import _load_span_processors

from deployments.tracing import ENDPOINT_VARIABLE, EXPORTER, environment, traces_url
from serve_app.settings import Settings
from serve_app.telemetry import span

ROOT = Path(__file__).parents[2]
PROMPT = "a secret castle in the sky"


class Collector(http.server.ThreadingHTTPServer):
    """An OTLP/HTTP collector on loopback: decodes what is posted to /v1/traces and keeps it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.spans: list[Span] = []
        self.raw = b""
        self.endpoint = f"http://127.0.0.1:{self.server_port}"

    def named(self, name: str) -> Span:
        """Return the one span called `name`."""
        (found,) = [span for span in self.spans if span.name == name]
        return found


class Receiver(http.server.BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        known = self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf"
        if known:
            request = ExportTraceServiceRequest.FromString(body)
            self.server.raw += body
            self.server.spans += [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
        self.send_response(200 if known else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def provider(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[TracerProvider]:
    """Set up tracing as Serve does in a replica (ray.serve._private.tracing_utils.setup_tracing)."""
    monkeypatch.setenv(ENDPOINT_VARIABLE, collector.endpoint)
    provider = TracerProvider()
    for processor in _load_span_processors(EXPORTER, "unused.json"):
        provider.add_span_processor(processor)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield provider
    provider.shutdown()


def test_spans_of_user_code_arrive(collector: Collector, provider: TracerProvider) -> None:
    """What `serve_app.telemetry.span` makes is posted as OTLP, with attributes and parents."""
    with span("request", outcome="rendered"), span("denoise", steps=8):
        pass
    provider.force_flush()
    request, denoise = collector.named("encore.request"), collector.named("encore.denoise")
    assert denoise.parent_span_id == request.span_id
    assert {a.key: a.value.int_value for a in denoise.attributes} == {"encore.steps": 8}
    assert request.attributes[0].value.string_value == "rendered"
    assert request.end_time_unix_nano >= denoise.end_time_unix_nano > 0


def test_what_errors_say_stays_here(collector: Collector, provider: TracerProvider) -> None:
    """Serve records exceptions with message and stack; only the type leaves the machine."""
    tracer = provider.get_tracer("ray.serve")
    route = {"http.route": "/v1/videos"}
    with pytest.raises(ValueError, match="castle"), tracer.start_as_current_span("replica", attributes=route):
        raise ValueError(f"cannot draw '{PROMPT}'")
    provider.force_flush()
    arrived = collector.named("replica")
    (event,) = arrived.events
    assert {a.key: a.value.string_value for a in event.attributes}["exception.type"] == "ValueError"
    assert arrived.status.code == arrived.status.STATUS_CODE_ERROR
    assert [a.key for a in arrived.attributes] == ["http.route"]
    assert b"castle" not in collector.raw


def test_a_collector_that_is_down_hurts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans that cannot be delivered are lost; making them neither fails nor waits."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv(ENDPOINT_VARIABLE, f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
    provider = TracerProvider()
    for processor in _load_span_processors(EXPORTER, "unused.json"):
        provider.add_span_processor(processor)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    with span("request") as made:
        assert made.is_recording()
    provider.shutdown()


@pytest.mark.parametrize("endpoint", [None, ""])
def test_without_an_endpoint_nothing_is_exported(endpoint: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No endpoint, no tracing: neither a variable for Serve nor a processor."""
    monkeypatch.delenv(ENDPOINT_VARIABLE, raising=False)
    if endpoint is not None:
        monkeypatch.setenv(ENDPOINT_VARIABLE, endpoint)
    assert environment(endpoint) == {}
    assert _load_span_processors(EXPORTER, "unused.json") == []


def test_serve_is_told_where_the_exporter_is() -> None:
    """In a process with these variables, Serve's own constants name our function and sample everything."""
    program = "from ray.serve._private import constants as c; print(c.RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH, end=' ')"
    program += "; print(c.RAY_SERVE_TRACING_SAMPLING_RATIO)"
    variables = {**os.environ, **environment("http://collector:4318")}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=variables, check=True)
    assert run.stdout.split() == ["deployments.tracing:exporter", "1.0"]


def test_the_variable_is_the_settings_own() -> None:
    """The endpoint's variable is the one Settings reads, so both cannot disagree by spelling."""
    prefix, _, field = ENDPOINT_VARIABLE.partition("_")
    assert Settings.model_config["env_prefix"] == f"{prefix}_"
    assert field.lower() in Settings.model_fields


@pytest.mark.parametrize("endpoint", ["http://c:4318", "http://c:4318/", "http://c:4318/v1/traces"])
def test_base_and_full_addresses_are_understood(endpoint: str) -> None:
    """The endpoint may be given as a base address or with the signal's path."""
    assert traces_url(endpoint) == "http://c:4318/v1/traces"


REAL = """
import sys, time, urllib.error, urllib.request
import ray
from ray import serve
from serve_app.telemetry import span

class Inner:
    def __call__(self, prompt):
        with span("denoise", steps=8):
            if not prompt:
                raise ValueError("cannot draw '%s'")
        return "mp4"

class Outer:
    def __init__(self, inner):
        self.inner = inner
    async def __call__(self, request):
        with span("request"):
            return await self.inner.remote(request.query_params.get("prompt", ""))

port, traceparent = int(sys.argv[1]), sys.argv[2]
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False,
         _node_ip_address="127.0.0.1")
serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
options = dict(ray_actor_options={"num_cpus": 0.1}, graceful_shutdown_timeout_s=2, graceful_shutdown_wait_loop_s=0.1)
deployment = serve.deployment(**options)
serve.run(deployment(Outer).bind(deployment(Inner).bind()))
request = urllib.request.Request(f"http://127.0.0.1:{port}/?prompt=cat", headers={"traceparent": traceparent})
print("answer", urllib.request.urlopen(request, timeout=30).read().decode())
try:
    urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30)
except urllib.error.HTTPError as error:
    print("answer", error.code)
time.sleep(6)  # the batch processor sends every five seconds
serve.shutdown()
ray.shutdown()
""".replace("%s", PROMPT)


@pytest.mark.cluster
def test_spans_of_real_replicas_arrive(collector: Collector) -> None:
    """On a real Serve the caller's trace goes through proxy and replicas into our spans, and errors stay unsaid."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    trace_id, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    command = [sys.executable, "-c", REAL, str(port), f"00-{trace_id}-{caller}-01"]
    variables = {**os.environ, **environment(collector.endpoint), "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT, env=variables)
    assert run.returncode == 0, run.stderr[-3000:]
    assert [line for line in run.stdout.splitlines() if line.startswith("answer")] == ["answer mp4", "answer 500"]
    by_id = {s.span_id.hex(): s for s in collector.spans}

    def line_of(made: Span) -> list[str]:
        """Names from a span up to its root, and the id of the root's parent."""
        above = by_id.get(made.parent_span_id.hex())
        return [made.name, *(line_of(above) if above else [made.parent_span_id.hex()])]

    ours, failed = sorted(
        (s for s in collector.spans if s.name == "encore.denoise"), key=lambda s: s.trace_id.hex() != trace_id
    )
    names = line_of(ours)
    assert names[-1] == caller
    assert [name for name in names if name.startswith("encore.")] == ["encore.denoise", "encore.request"]
    assert any("proxy" in name for name in names)
    assert {a.key for a in failed.attributes} == {"encore.steps", "error.type"}
    assert b"castle" not in collector.raw
