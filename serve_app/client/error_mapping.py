"""Failures of a call, told in the classes of serve_app.errors: what the server raised is what the caller catches.

A proxy or another program may have answered instead of Encore, so a body that is not the OpenAI error form still
becomes an error of the right class by its status, with the beginning of what was said. But one: a 404 that Encore did
not say is no NotFound. A proxy whose servers are just being started says 404 too, and who polls a job must not take
that for its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus

import httpx

from serve_app import errors
from serve_app.errors import EncoreError, InvalidRequest, Unavailable

GATEWAY = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
EXCERPT = 200
_GONE = (errors.NotFound.code, errors.ContentGone.code)


def of_response(response: httpx.Response) -> EncoreError:
    """Return the error that an answer with status 300 or above stands for."""
    told = _told(response)
    code = told.get("code") or ""
    message = told.get("message") or f"{response.url} answered {response.status_code}: {response.text[:EXCERPT]}"
    kind = kind_of(response.status_code, code)
    if issubclass(kind, errors.NotFound) and code not in _GONE:
        kind, told = Unavailable, {}
        message = f"{message} That is no answer of an Encore server: it may be starting, or the address be another's."
    return kind(message, param=told.get("param"), retry_after=_retry_after(response))


def of_job(code: str, message: str) -> EncoreError:
    """Return the error of a job that failed."""
    for kind in _kinds():
        if kind.code == code:
            return kind(message)
    return errors.RenderFailed(message)


def of_transport(error: httpx.RequestError, base_url: str) -> EncoreError:
    """Return the error of a call that got no answer."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return Unavailable(
            f"No Encore server answers at {base_url}. Start one with `encore serve`, or set ENCORE_URL to its address."
        )
    if isinstance(error, httpx.TimeoutException):
        return Unavailable(f"The Encore server at {base_url} did not answer in time ({type(error).__name__}).")
    return Unavailable(f"The connection to the Encore server at {base_url} broke: {error or type(error).__name__}.")


def of_reply(error: Exception, response: httpx.Response) -> EncoreError:
    """Return the error of an answer that says success but is not in the expected form."""
    return EncoreError(f"{response.url} did not answer as an Encore server does: {type(error).__name__} {error}.")


def kind_of(status: int, code: str) -> type[EncoreError]:
    """Return the class for a status and a code: both, else the status alone, else the hundred it belongs to."""
    by_status = [kind for kind in _kinds() if kind.status == status]
    for kind in by_status:
        if kind.code == code:
            return kind
    if status in GATEWAY:
        return Unavailable
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return by_status[0] if by_status else InvalidRequest
    return EncoreError


def _kinds() -> Iterator[type[EncoreError]]:
    """Yield the tree of errors, a parent always before its children."""
    kinds: list[type[EncoreError]] = [EncoreError]
    while kinds:
        kind = kinds.pop(0)
        yield kind
        kinds += kind.__subclasses__()


def _told(response: httpx.Response) -> dict[str, str | None]:
    try:
        told = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    if not isinstance(told, dict):
        return {}
    return {name: value if value is None else str(value) for name, value in told.items()}


def _retry_after(response: httpx.Response) -> int | None:
    value = response.headers.get("retry-after", "")
    return int(value) if value.isascii() and value.isdigit() else None
