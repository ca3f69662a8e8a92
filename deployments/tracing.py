"""Spans to an OTLP collector, through Ray Serve's own tracing hook.

Serve installs the tracer provider of every replica and proxy and asks `exporter` (named by import path) where spans go;
installing another provider would be ignored. Everything travels in the environment of the Ray nodes: the hook takes no
arguments, and in Ray 2.60 `serve.start(tracing_config=...)` and a config's `tracing_config` reach replicas but not
proxies, which would then drop the caller's `traceparent`. OTEL_EXPORTER_OTLP_HEADERS works as usual.

Prompts never leave the machine in a trace: Serve's own spans record what an exception said, and that may quote one, so
everything but the exception's type is taken out before export.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Status

from serve_app.errors import Unavailable

EXPORTER = f"{__name__}:exporter"
"""What RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH takes."""

ENDPOINT_VARIABLE = "ENCORE_OTLP_ENDPOINT"
_TRACES_PATH = "/v1/traces"
_TELLING = ("exception.message", "exception.stacktrace")


def exporter() -> list[SpanProcessor]:
    """Return the processors Serve shall feed: one to the collector, or none when no endpoint is set."""
    endpoint = os.environ.get(ENDPOINT_VARIABLE)
    if not endpoint:
        return []
    return [BatchSpanProcessor(Discreet(OTLPSpanExporter(endpoint=traces_url(endpoint))))]


def environment(endpoint: str | None, sampling_ratio: float = 1.0) -> dict[str, str]:
    """Return the variables that turn tracing on, to be set before Ray starts; none without an endpoint.

    Below a ratio of 1, Serve attaches no context to requests it leaves out, and their spans become roots of their own.
    """
    if not endpoint:
        return {}
    return {
        ENDPOINT_VARIABLE: endpoint,
        "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": EXPORTER,
        "RAY_SERVE_TRACING_SAMPLING_RATIO": str(sampling_ratio),
        "OTEL_SERVICE_NAME": "encore",
    }


def require(endpoint: str | None) -> None:
    """Refuse a configured endpoint that the environment does not serve; raises Unavailable saying what is missing.

    A setting that silently did nothing would be worse than none.
    """
    missing = [name for name in environment(endpoint) if name not in os.environ]
    if missing:
        raise Unavailable(
            f"otlp_endpoint is set, but tracing is turned on in the environment of every Ray node: "
            f"{', '.join(missing)} must be set before Ray starts (deployments/observability/README.md)."
        )


def traces_url(endpoint: str) -> str:
    """Return the address spans are posted to: `endpoint` with OTLP's path for traces, unless it has it already."""
    base = endpoint.rstrip("/")
    return base if base.endswith(_TRACES_PATH) else base + _TRACES_PATH


class Discreet(SpanExporter):
    """Exports spans without what their errors said: messages, stack traces and status texts are dropped."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export `spans`; called from the batch processor's thread."""
        return self._inner.export([_without_words(span) for span in spans])

    def shutdown(self) -> None:
        """Close the connection."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait until nothing is under way."""
        return self._inner.force_flush(timeout_millis)


def _without_words(span: ReadableSpan) -> ReadableSpan:
    if not span.events and not span.status.description:
        return span
    return ReadableSpan(
        span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=span.attributes,
        events=[_without_message(event) for event in span.events],
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _without_message(event: Event) -> Event:
    kept = {name: value for name, value in (event.attributes or {}).items() if name not in _TELLING}
    return Event(event.name, kept, event.timestamp)
