"""The HTTP application over one VideoService: routes, errors in the OpenAI form, documentation that works offline."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from serve_app import __version__
from serve_app.api.access import Access
from serve_app.api.error_responses import register_failures
from serve_app.api.http.body import BodyLimit
from serve_app.api.http.slow_clients import SlowClients
from serve_app.api.openapi import document
from serve_app.api.routes import router
from serve_app.api.warm_up_routes import router as warm_router
from serve_app.media.first_frame import MAX_BYTES
from serve_app.service.service import VideoService

_DESCRIPTION = """
Text to video, rendered once and played many times. The routes under `/v1/videos` speak the OpenAI Videos API; every
answer about a video says how it came to be (`cache.outcome`, and `Cache-Status`, RFC 9211).
"""


def build_api(
    service: VideoService,
    *,
    max_body_bytes: int,
    max_image_bytes: int = MAX_BYTES,
    slow_clients: Mapping[str, Any] = MappingProxyType({}),
    access: Mapping[str, Any] = MappingProxyType({}),
) -> FastAPI:
    """Return the ASGI application; bodies over `max_body_bytes`, apart from an image in them, are a 413.

    slow_clients, access: arguments of SlowClients and Access where the defaults will not do.
    Its start-up starts the service, so that jobs of a server that died are rendered without a request.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield

    app: FastAPI = FastAPIOffline(
        title="Encore", version=__version__, description=_DESCRIPTION, redoc_url=None, lifespan=lifespan
    )
    app.state.service = service
    app.state.max_body_bytes = max_body_bytes
    # include_router would match every path twice, a quarter of a hit's time
    app.router.routes.extend([*router.routes, *warm_router.routes])
    document(app, service.planner.card, service.planner.max_prompt_chars)
    register_failures(app)
    app.add_middleware(SlowClients, **slow_clients)
    app.add_middleware(BodyLimit, max_body_bytes=max_body_bytes, max_image_bytes=max_image_bytes)
    app.add_middleware(Access, **access)
    return app
