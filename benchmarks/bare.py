"""The cheapest thing Ray Serve can do with a video: one route that returns the bytes of a file from memory.

Deployed as a second application beside Encore, behind the same HAProxy, so that what a cache hit adds can be told from
what Serve costs anyway. No postponed annotations: Ray reads the type of `build`'s parameter.
"""

from pathlib import Path

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from starlette.responses import Response

app = FastAPI()


@serve.deployment(max_ongoing_requests=2_000)
@serve.ingress(app)
class Bare:
    """Holds one file."""

    def __init__(self, file: str) -> None:
        self._body = Path(file).read_bytes()

    @app.get("/video")
    async def video(self) -> Response:
        """Return the file."""
        return Response(self._body, media_type="video/mp4")


def build(args: dict[str, str]) -> Application:
    """Return the application over `args["file"]`."""
    return Bare.bind(args["file"])
