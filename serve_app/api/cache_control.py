"""What a request's Cache-Control asks of the cache (RFC 9111, section 5.2.1).

`only-if-cached` is obeyed. `no-cache`, `max-age` and `min-fresh` ask for what is fresh: every stored video is, because
a key describes all of it, so they change nothing (design, section 5). `no-transform` is always obeyed.
"""

from __future__ import annotations

from starlette.requests import Request


def only_if_cached(request: Request) -> bool:
    """Tell whether the client wants a stored answer or none."""
    given = ",".join(request.headers.getlist("cache-control"))
    return any(each.strip().lower() == "only-if-cached" for each in given.split(","))
