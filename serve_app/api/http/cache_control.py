"""What a request's Cache-Control asks of the cache (RFC 9111, section 5.2.1).

`only-if-cached` is obeyed. `no-store` is refused where a video would be rendered: those who ask for one video share one
render, and what it makes is stored by the process that makes it. `no-cache`, `max-age` and `min-fresh` ask for what is
fresh: every stored video is, because a key describes all of it, so they change nothing.
`no-transform` is always obeyed.
"""

from __future__ import annotations

from starlette.requests import Request

from serve_app.errors import Unprocessable


def only_if_cached(request: Request) -> bool:
    """Tell whether the client wants a stored answer or none."""
    return "only-if-cached" in _directives(request)


def check_storable(request: Request) -> None:
    """Raise Unprocessable for a request whose answer is not to be stored: it would be."""
    if "no-store" in _directives(request):
        raise Unprocessable(
            "'Cache-Control: no-store' cannot be obeyed: this server stores each video that it makes. Send the request "
            "without it, and POST /invalidate with the answer's key to have the video deleted.",
            param="Cache-Control",
        )


def _directives(request: Request) -> list[str]:
    given = ",".join(request.headers.getlist("cache-control"))
    return [each.strip().lower() for each in given.split(",")]
