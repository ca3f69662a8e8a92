"""What a server that has just become ready says of its shared tiers; trouble there never stops a start."""

from __future__ import annotations

import httpx

PATIENCE_SECONDS = 10.0


def broken_tiers(url: str) -> list[str]:
    """Return a line for each shared tier that `/readyz` calls broken; none when it cannot be asked."""
    try:
        answer = httpx.get(f"{url}/readyz", timeout=PATIENCE_SECONDS, trust_env=False).json()
        return [
            f"{each['tier']} is {each['reason']}: {each['message']} (requests are answered without; see {url}/readyz)"
            for each in answer["broken"]
        ]
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return []
