"""What is written behind an answer belongs to the trace of the request that it was made for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serve_app.render.latents import LatentsCache
from serve_app.render.text_encoding import PromptEmbedder
from serve_app.telemetry import span
from tests.serve_app.render.test_text_encoding import CountingEncoder
from tests.serve_app.service.rig import Rig, until


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Install a provider for one test; the global one can be set only once per process."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return exporter


def traces_of_writes(finished: InMemorySpanExporter) -> list[int]:
    spans = finished.get_finished_spans()
    return sorted(each.context.trace_id for each in spans if (each.attributes or {}).get("encore.operation") == "write")


async def test_embeddings(finished: InMemorySpanExporter, tmp_path: Path) -> None:
    """Two requests whose prompts go through the encoder in one call: each write is of its own request's trace."""
    rig = Rig(tmp_path)
    encoder = CountingEncoder()
    encoder.gate.clear()
    embedder = PromptEmbedder(encoder, rig.cache(kind="embedding"), rig.telemetry)

    async def ask(number: int) -> int:
        with span("request") as current:
            await embedder.embed((f"{number:064x}", "0" * 64), (f"prompt {number}", ""))
            return current.get_span_context().trace_id

    requests = [asyncio.create_task(ask(number)) for number in (1, 2, 3)]
    await until(lambda: bool(encoder.calls))
    encoder.gate.set()
    traces = await asyncio.gather(*requests)
    await embedder.settled()
    assert len(set(traces)) == 3
    assert set(traces_of_writes(finished)) == set(traces)
    assert {each.context.trace_id for each in finished.get_finished_spans()} == set(traces)


async def test_latents(finished: InMemorySpanExporter, tmp_path: Path) -> None:
    """The write goes on when the request has its answer, and is a span below it."""
    kept = LatentsCache(Rig(tmp_path).latents())
    with span("request") as current:
        kept.keep("ab" * 32, torch.zeros(1, 1, 1, 1))
    await kept.settled()
    assert traces_of_writes(finished) == [current.get_span_context().trace_id]
