"""Which server a process belongs to: the launcher gives each start an id, by environment, and HAProxy shows it.

A replica's port may outlive the replica: another program of the same machine, another Encore too, takes it while some
HAProxy still forwards there. So behind the launcher every answer carries the id of its server, and a request that
carries another one, or none, is refused (421) before anything looks at it. HAProxy (`launcher/haproxy.py`) sends the id
with every request and believes no answer without it. Where no launcher is, there is no id and nothing is checked.
"""

from __future__ import annotations

import os
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

VARIABLE = "ENCORE_INSTANCE"
HEADER = "x-encore-instance"
MIDDLEWARES = "deployments.replica.instance:middlewares"
"""What Ray is to call in the process of every HTTP server of its own (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH)."""

_ANOTHER = {
    "error": {
        "message": "This address belongs to another server; ask at the address that `encore serve` printed.",
        "type": "invalid_request_error",
        "param": None,
        "code": "misdirected_request",
    }
}


def new_instance() -> str:
    """Return an id for one start of one server."""
    return secrets.token_hex(16)


def middlewares() -> list[Middleware]:
    """Return what Ray is to put before a replica's or its own proxy's HTTP application."""
    instance = os.environ.get(VARIABLE)
    return [Middleware(InstanceCheck, instance=instance)] if instance else []


class InstanceCheck:
    """ASGI middleware that refuses requests for another server and signs the answers of this one."""

    def __init__(self, app: ASGIApp, instance: str) -> None:
        self._app = app
        self._instance = instance

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, if it is for this server."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        if Headers(scope=scope).get(HEADER) != self._instance:
            await JSONResponse(_ANOTHER, status_code=421)(scope, receive, send)
            return

        async def signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = self._instance
            await send(message)

        await self._app(scope, receive, signed)
