"""The routes of warm-ups: begin one or ask what it would cost, look how far it is, end it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.http.body import read_object
from serve_app.api.http.cache_control import check_storable
from serve_app.api.openapi import EVERYWHERE, WITH_BODY, errors
from serve_app.api.strict_route import StrictRoute
from serve_app.errors import UnknownField, Unprocessable
from serve_app.schema import VideoRequest
from serve_app.schema.templates import REFUSED, TTL_SCHEMA, VARIABLES_SCHEMA
from serve_app.schema.warm_up import WarmEstimate, WarmUpError, WarmUpObject
from serve_app.service.warmup.record import WarmUp
from serve_app.service.warmup.warmup import MAX_ITEMS, Warming

_FIELDS = ("templates", "ttl", "dry_run")
_TTL = TTL_SCHEMA | {
    "description": "how long L2 keeps a video that nobody asks for: seconds, or 90s, 12h, 3d; absent: 3d",
}
_TEMPLATE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["prompt"],
    "properties": {
        name: schema for name, schema in VideoRequest.model_json_schema()["properties"].items() if name not in REFUSED
    }
    | {
        "prompt": {
            "type": "string",
            "pattern": r"\S",
            "description": "may name variables in braces; a brace is written twice",
        },
        "variables": VARIABLES_SCHEMA,
        "ttl": _TTL,
    },
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["templates"],
                    "properties": {
                        "templates": {"type": "array", "minItems": 1, "items": _TEMPLATE},
                        "ttl": _TTL,
                        "dry_run": {"type": "boolean", "description": "count what is there, render nothing"},
                    },
                },
                "example": {
                    "templates": [
                        {"prompt": "a {color} {shape} grows", "variables": {"color": ["red"], "shape": ["heart"]}}
                    ]
                },
            }
        },
    }
}

router = APIRouter(responses=EVERYWHERE, tags=["cache"], route_class=StrictRoute)


def _warming(request: Request) -> Warming:
    warming: Warming = request.app.state.service.warming
    return warming


@router.post(
    "/v1/cache/warm",
    status_code=202,
    response_model=WarmUpObject,
    responses=WITH_BODY | errors(404) | {200: {"model": WarmEstimate, "description": "of a dry run"}},
    openapi_extra=_BODY,
    description=f"Make and store every video that templates stand for, at most {MAX_ITEMS:,} combinations a call, "
    "while nothing more urgent is to be rendered. With `dry_run` only tell what is there and what the rest takes.",
)
async def warm(request: Request) -> Response:
    """Begin a warm-up, or estimate it."""
    check_storable(request)
    fields = await read_object(request)
    for name in fields:
        if name not in _FIELDS:
            shown = name[:100].encode("utf-8", "replace").decode()
            raise UnknownField(f"Unknown field '{shown}'. Known fields: {', '.join(_FIELDS)}.", param=shown)
    dry_run = fields.pop("dry_run", False)
    if not isinstance(dry_run, bool):
        raise Unprocessable("'dry_run' must be true or false.", param="dry_run")
    if dry_run:
        return _json(WarmEstimate(**asdict(await _warming(request).estimate(fields))), 200)
    return _json(warm_up_object(await _warming(request).begin(fields)), 202)


@router.get("/v1/cache/warm/{warm_up_id}", response_model=WarmUpObject, responses=errors(404))
async def progress(request: Request, warm_up_id: str) -> Response:
    """Tell how far a warm-up is."""
    return _json(warm_up_object(await _warming(request).get(warm_up_id)), 200)


@router.delete("/v1/cache/warm/{warm_up_id}", response_model=WarmUpObject, responses=errors(404))
async def cancel(request: Request, warm_up_id: str) -> Response:
    """End a warm-up; what it has made stays, and one that has ended stays as it is."""
    return _json(warm_up_object(await _warming(request).cancel(warm_up_id)), 200)


def warm_up_object(warm_up: WarmUp) -> WarmUpObject:
    """Return a warm-up as the wire shows it."""
    return WarmUpObject(
        id=warm_up.id,
        status=warm_up.status.value,
        created_at=int(warm_up.created_at),
        completed_at=None if warm_up.completed_at is None else int(warm_up.completed_at),
        expires_at=int(warm_up.expires_at),
        total=warm_up.total,
        duplicates=warm_up.duplicates,
        there=warm_up.there,
        rendered=warm_up.rendered,
        failed=warm_up.failed,
        eta_seconds=warm_up.eta_seconds,
        errors=[WarmUpError(**asdict(each)) for each in warm_up.errors],
    )


def _json(body: WarmUpObject | WarmEstimate, status: int) -> Response:
    return Response(body.model_dump_json(), status_code=status, media_type="application/json")
