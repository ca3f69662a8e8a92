"""OpenTelemetry spans by name; a no-op until somebody installs a tracer provider (see deployments/tracing.py).

Spans carry numbers and outcomes, never prompt text: traces leave the machine, prompts do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import Span

Attribute = str | int | float | bool


@contextmanager
def span(name: str, **attributes: Attribute) -> Iterator[Span]:
    """Open a span `encore.<name>` under the current one; an exception is recorded and raised again."""
    tracer = trace.get_tracer("encore")
    with tracer.start_as_current_span(
        f"encore.{name}", attributes={f"encore.{k}": v for k, v in attributes.items()}
    ) as current:
        yield current
