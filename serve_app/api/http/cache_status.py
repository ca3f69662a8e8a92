"""How an answer came to be, as HTTP says it: the Cache-Status field of RFC 9211, and Encore's own headers."""

from __future__ import annotations

from serve_app.core import Outcome


def cache_status(outcome: Outcome | None, *, stored: bool = True) -> str:
    """Return the Cache-Status value; None is a request still on its way to an outcome."""
    if outcome is None:
        return "encore; fwd=miss"
    if outcome.is_hit:
        return f"encore; hit; detail={outcome}"
    parts = ["encore", "fwd=miss"]
    if outcome is Outcome.JOINED:
        parts.append("collapsed")
    if stored:
        parts.append("stored")
    if outcome in (Outcome.LATENTS, Outcome.RESUMED):
        parts.append(f"detail={outcome}")
    return "; ".join(parts)
