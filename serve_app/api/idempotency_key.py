"""What the headers of a POST say of its being one of several tries; see `service.jobs.idempotency`."""

from __future__ import annotations

import re
from typing import Any

from starlette.requests import Request

from serve_app.errors import InvalidRequest
from serve_app.service.jobs.idempotency import FIRST, RequestAttempt

KEY_PATTERN = r"^[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?$"
_KEY = re.compile(KEY_PATTERN)

PARAMETERS: list[dict[str, Any]] = [
    {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": KEY_PATTERN},
        "description": "a name of your own for this request: sent again with it within 24 hours, the answer is the "
        "first one's job. With other fields it is a 422, `idempotency_key_reused`.",
    },
    {
        "name": "x-stainless-retry-count",
        "in": "header",
        "required": False,
        "schema": {"type": "string"},
        "description": "sent by the OpenAI SDKs; a number above 0: the answer is the job of the same fields, if it "
        "came within the last minute.",
    },
]
"""The headers, for the OpenAPI document."""


def attempt_of(request: Request) -> RequestAttempt:
    """Return what `request` says; raises InvalidRequest for a key that is none."""
    keys = request.headers.getlist("idempotency-key")
    retries = request.headers.get("x-stainless-retry-count", "0")
    retried = retries.isascii() and retries.isdigit() and retries.strip("0") != ""
    if not keys:
        return RequestAttempt(None, True) if retried else FIRST
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise InvalidRequest("'Idempotency-Key' must be 1 to 255 printable ASCII characters.", param="Idempotency-Key")
    return RequestAttempt(keys[0], retried)
