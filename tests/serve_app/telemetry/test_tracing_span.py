"""Spans: names, attributes, nesting, and what they never say."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from serve_app.telemetry import span


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Install a provider for one test; the global one can be set only once per process."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return exporter


def test_name_and_attributes_are_prefixed(finished: InMemorySpanExporter) -> None:
    """A span is found under `encore.` with its attributes, which may be added to while it is open."""
    with span("tier", tier="l2", bytes=3) as current:
        current.set_attribute("encore.result", "hit")
    (made,) = finished.get_finished_spans()
    assert made.name == "encore.tier"
    assert dict(made.attributes or {}) == {"encore.tier": "l2", "encore.bytes": 3, "encore.result": "hit"}
    assert made.status.status_code is StatusCode.UNSET


def test_spans_nest(finished: InMemorySpanExporter) -> None:
    """A span opened inside another one is its child, in the same trace."""
    with span("outer"), span("inner"):
        pass
    inner, outer = finished.get_finished_spans()
    assert inner.parent is not None
    assert inner.parent.span_id == outer.context.span_id
    assert inner.context.trace_id == outer.context.trace_id


def test_exception_leaves_its_type_but_not_its_words(finished: InMemorySpanExporter) -> None:
    """An error raised inside goes on to the caller; its message, which may quote a prompt, is not in the span."""
    with pytest.raises(ValueError, match="secret castle"), span("encode"):
        raise ValueError("cannot read 'a secret castle'")
    (made,) = finished.get_finished_spans()
    assert made.status.status_code is StatusCode.ERROR
    assert made.attributes is not None
    assert made.attributes["error.type"] == "ValueError"
    assert "castle" not in made.to_json()


def test_without_a_provider_a_span_is_silent() -> None:
    """With no tracer provider installed, code inside a span runs as it would without."""
    with span("anything", step=1) as current:
        assert not current.is_recording()
