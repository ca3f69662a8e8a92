"""What every route refuses before its own code runs: query parameters and bodies that it would not read.

An option that is not read is a wrong answer: `POST /v1/videos/sync?seed=7` would be answered with
seed 42. This is the class of all routes, so that none can forget it; it costs nothing where there is no query.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.http.forms import urlencoded_fields
from serve_app.errors import InvalidRequest, NotFound, UnknownField, Unprocessable

MAX_QUERY = 4_096
MAX_PATH_PARAM = 512
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class StrictRoute(APIRoute):
    """A route that answers 422 to a query parameter it does not know, and 400 to a body it would not read.

    It reads a body where its OpenAPI entry has one.
    """

    def get_route_handler(self) -> Handler:
        """Return the handler with the checks before it."""
        handle = super().get_route_handler()
        known = tuple(each.alias for each in get_flat_params(self.dependant) if _is_query(each))
        reads_body = "requestBody" in (self.openapi_extra or {})

        async def checked(request: Request) -> Response:
            if request.scope["query_string"]:
                _check_query(request.scope["query_string"], known, request)
            for name, value in request.path_params.items():
                if len(value) > MAX_PATH_PARAM:
                    raise NotFound(f"There is no {request.method} of an id of {len(value)} characters.", param=name)
            if not reads_body and request.headers.get("content-length", "0").strip("0"):
                raise InvalidRequest(f"{request.method} {self.path} reads no body; send none.")
            return await handle(request)

        return checked


def _is_query(field: Any) -> bool:
    return getattr(getattr(field.field_info, "in_", None), "value", None) == "query"


def _check_query(query: bytes, known: Iterable[str], request: Request) -> None:
    """Raise InvalidRequest for a query that is malformed, Unprocessable for parameters that are not read."""
    if len(query) > MAX_QUERY:
        raise InvalidRequest(f"The query is longer than {MAX_QUERY} bytes.")
    names = [name for name, _ in urlencoded_fields(query, "query")]
    known = tuple(known)
    if unknown := [name for name in dict.fromkeys(names) if name not in known]:
        shown = ", ".join(f"'{name[:100]}'" for name in unknown[:8])
        has = f"it has {', '.join(known)}" if known else "it has none"
        where = "; fields of a video belong into the body" if "requestBody" in _extra(request) else ""
        raise UnknownField(
            f"{request.method} {request.url.path[:100]} knows no query parameter {shown}: {has}{where}.",
            param=unknown[0][:100],
        )
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise Unprocessable(f"'{twice}' is given twice.", param=twice)


def _extra(request: Request) -> dict[str, Any]:
    return getattr(request.scope.get("route"), "openapi_extra", None) or {}
