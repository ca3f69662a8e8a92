"""OpenTelemetry spans by name; a no-op until a tracer provider is installed (see deployments/tracing.py).

Spans carry numbers and outcomes, never prompt text: traces leave the machine, prompts do not. That is why an exception
leaves its type in the span, never its message.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import Span, StatusCode

Attribute = str | int | float | bool


@contextmanager
def span(name: str, **attributes: Attribute) -> Iterator[Span]:
    """Open a span `encore.<name>` under the current one; an exception marks it failed and is raised again."""
    with trace.get_tracer("encore").start_as_current_span(
        f"encore.{name}",
        attributes={f"encore.{k}": v for k, v in attributes.items()},
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except Exception as error:
            current.set_attribute("error.type", type(error).__name__)
            current.set_status(StatusCode.ERROR)
            raise
