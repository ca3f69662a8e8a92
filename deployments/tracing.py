"""Spans to an OTLP collector, through Ray Serve's own tracing hook.

Serve installs the tracer provider of every replica and proxy and asks `exporter` (named by import path) where spans go;
installing another provider would be ignored. Everything travels in the environment of the Ray nodes: the hook takes no
arguments, and in Ray 2.60 `serve.start(tracing_config=...)` and a config's `tracing_config` reach replicas but not
proxies, which would then drop the caller's `traceparent`. OTEL_EXPORTER_OTLP_HEADERS works as usual.

Prompts never leave the machine in a trace: Serve's own spans record what an exception said, and that may quote one, so
everything but the exception's type is taken out before export.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit, urlunsplit

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Status

from serve_app.errors import Unavailable
from serve_app.setting_sources import of_environment
from serve_app.urls import HIDDEN, is_loopback

EXPORTER = f"{__name__}:exporter"
"""What RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH takes."""

ENDPOINT_VARIABLE = "ENCORE_OTLP_ENDPOINT"
_TRACES_PATH = "/v1/traces"
_TALKATIVE = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal", "urllib3")
_TELLING = ("exception.message", "exception.stacktrace")


def exporter() -> list[SpanProcessor]:
    """Return the processors Serve shall feed: one to the collector, or none when no endpoint is set."""
    endpoint = of_environment("otlp_endpoint")
    if not endpoint:
        return []
    session = requests.Session()
    session.trust_env = not is_loopback(endpoint)  # a proxy is no way to this very machine
    for name in _TALKATIVE:
        logging.getLogger(name).addFilter(_Silenced(endpoint).filter)
    return [BatchSpanProcessor(Discreet(OTLPSpanExporter(endpoint=traces_url(endpoint), session=session)))]


def environment(endpoint: str | None, sampling_ratio: float = 1.0) -> dict[str, str]:
    """Return the variables that turn tracing on, to be set before Ray starts; none without an endpoint.

    Below a ratio of 1, Serve attaches no context to requests it leaves out, and their spans become roots of their own.
    """
    if not endpoint:
        return {}
    told = {} if of_environment("otlp_endpoint") == endpoint else {ENDPOINT_VARIABLE: endpoint}
    return told | {
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
    parts = urlsplit(endpoint)
    base = parts.path.rstrip("/")
    return urlunsplit(parts._replace(path=base if base.endswith(_TRACES_PATH) else base + _TRACES_PATH))


class _Silenced:
    """Takes what is secret in the endpoint out of log lines: requests' errors quote the address with its query."""

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        login = parts.netloc.rpartition("@")[0]
        self._secrets = [text for text in (parts.query, login, unquote(login)) if text]

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the line; it is always kept."""
        message = record.getMessage()
        for secret in self._secrets:
            message = message.replace(secret, HIDDEN)
        record.msg, record.args = message, ()
        record.exc_info = record.exc_text = None
        return True


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
