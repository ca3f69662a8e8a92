"""Every failure in the OpenAI form, `{"error": {"message", "type", "param", "code"}}`; never a stack trace."""

from __future__ import annotations

import logging

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Match

from serve_app.api.http.headers import header_fields
from serve_app.errors import EncoreError, InvalidRequest, NotFound, TooLarge, Unprocessable

logger = logging.getLogger(__name__)

_MADE_BY_STARLETTE: dict[int, type[EncoreError]] = {404: NotFound, 413: TooLarge, 422: Unprocessable}


def failure_response(error: EncoreError) -> JSONResponse:
    """Return the response for `error`, with Retry-After where it says when to come back."""
    headers = dict(error.headers) | ({} if error.retry_after is None else {"Retry-After": str(error.retry_after)})
    return JSONResponse(_speakable(error.wire()), status_code=error.status, headers=header_fields(headers))


def _allowed(request: Request) -> str:
    """Return the methods of a path: Starlette names those of the first route that has it alone."""
    routes = [each for each in request.app.router.routes if each.matches(request.scope)[0] is not Match.NONE]
    return ", ".join(sorted({method for each in routes for method in getattr(each, "methods", None) or ()}))


def _speakable(body: dict[str, dict[str, str | None]]) -> dict[str, dict[str, str | None]]:
    """Return an error's body in what UTF-8 can say: a lone surrogate in a name becomes a question mark."""
    return {
        kind: {name: None if text is None else text.encode("utf-8", "replace").decode() for name, text in each.items()}
        for kind, each in body.items()
    }


def register_failures(app: FastAPI) -> None:
    """Make every exception of `app` leave in the OpenAI form."""

    @app.exception_handler(EncoreError)
    async def ours(_: Request, error: EncoreError) -> JSONResponse:
        return failure_response(error)

    @app.exception_handler(RequestValidationError)
    async def parameters(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = str(first["loc"][-1])
        return failure_response(Unprocessable(f"'{param}' is not valid: {first['msg']}.", param=param))

    @app.exception_handler(HTTPException)
    async def starlettes(request: Request, error: HTTPException) -> JSONResponse:
        message = (
            f"There is no {request.method} {request.url.path[:200]}." if error.status_code == 404 else error.detail
        )
        kind = _MADE_BY_STARLETTE.get(error.status_code, InvalidRequest)
        headers = header_fields(error.headers or {}) | (
            {"Allow": _allowed(request)} if error.status_code == 405 else {}
        )
        return JSONResponse(_speakable(kind(message).wire()), status_code=error.status_code, headers=headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        logger.error("unexpected failure of %s %s", request.method, request.url.path, exc_info=error)
        return failure_response(EncoreError("Something went wrong on the server; it has been logged."))
