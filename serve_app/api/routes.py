"""The routes, one line of story each: read the request, ask the service, shape the answer. No business rules here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.content import content_response, disposition, redirection
from serve_app.api.event_stream import EventStream
from serve_app.api.http.body import read_object, read_request
from serve_app.api.http.cache_control import check_storable, only_if_cached
from serve_app.api.http.cache_status import cache_status
from serve_app.api.http.headers import header_fields, percent, sentence
from serve_app.api.idempotency_key import PARAMETERS, attempt_of
from serve_app.api.openapi import EVERYWHERE, WITH_BODY, Responses, errors, without_null
from serve_app.api.strict_route import StrictRoute
from serve_app.api.wire_objects import model_object, video_object
from serve_app.errors import NotSupported
from serve_app.media import Variant
from serve_app.schema import VideoEvent, VideoObject, VideoRequest
from serve_app.schema.input_reference import JSON_IMAGE
from serve_app.schema.invalidation import InvalidationRequest, parse_invalidation
from serve_app.schema.resolve import no_such_model
from serve_app.service.jobs.job import Job
from serve_app.service.service import VideoService

router = APIRouter(responses=EVERYWHERE, route_class=StrictRoute)

_REQUEST_SCHEMA = VideoRequest.model_json_schema()
_FORM_SCHEMA = without_null(_REQUEST_SCHEMA)
_REQUEST_SCHEMA["properties"]["input_reference"] = JSON_IMAGE
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": _REQUEST_SCHEMA, "example": {"prompt": "a red circle moves left"}},
            "multipart/form-data": {
                "schema": _FORM_SCHEMA,
                "encoding": {"input_reference": {"contentType": "image/png, image/jpeg, image/webp"}},
            },
        },
    }
}
_INVALIDATE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": InvalidationRequest.model_json_schema(), "example": {"tag": "spring campaign"}
            }
        },
    }
}  # fmt: skip
_MP4: Responses = {
    200: {
        "content": {"video/mp4": {}},
        "description": "the MP4",
        "headers": {
            "X-Encore-Notice": {
                "description": "what the model may not do as it was asked, percent-encoded; a job's `notice`",
                "schema": {"type": "string"},
            }
        },
    }
}
_VIDEO_ERRORS = WITH_BODY | errors(404)
_EVENT_SCHEMA = VideoEvent.model_json_schema(ref_template="#/components/schemas/{model}")
del _EVENT_SCHEMA["$defs"]  # VideoObject has them too
_EVENTS: Responses = {
    200: {
        "content": {"text/event-stream": {"schema": _EVENT_SCHEMA}},
        "description": "events `queued`, `in_progress` (every denoising step), `completed`, `failed`, `deleted`; the "
        "data of each is this object. The stream closes after the last one.",
    },
    204: {"description": "the event that Last-Event-ID names was the last"},
}
_MEDIA: dict[str, Any] = {each.media_type: {} for each in Variant}
_CONTENT: Responses = errors(404, 416) | {
    200: {"content": _MEDIA, "description": "the MP4, or the picture of it"},
    206: {"content": _MEDIA, "description": "the range that `Range` asks for; `Content-Range` says which"},
    304: {"description": "it is what `If-None-Match` names"},
    307: {"description": "the MP4 is to be had from object storage (setting `s3_redirect`)"},
}


class _VideoId(StringConvertor):
    """An id in a path: no name of another route beside it, so that their 405 names the methods they have."""

    regex = "(?!(?:sync|edits|extensions|characters)$)[^/]+"


register_url_convertor("video_id", _VideoId())


def _service(request: Request) -> VideoService:
    service: VideoService = request.app.state.service
    return service


@router.post(
    "/v1/videos",
    response_model=VideoObject,
    responses=_VIDEO_ERRORS | errors(504),
    openapi_extra=_BODY | {"parameters": PARAMETERS},
    tags=["videos"],
)
async def create(request: Request) -> Response:
    """Accept a video job; poll it, or follow its events, by its id. A request sent again gets its first job."""
    check_storable(request)
    wanted = await read_request(request)
    if only_if_cached(request):
        await _service(request).check_cached(wanted)
    return _job_response(await _service(request).jobs.submit(wanted, attempt_of(request)))


@router.post(
    "/v1/videos/sync",
    responses=_VIDEO_ERRORS | errors(504) | _MP4,
    response_class=Response,
    openapi_extra=_BODY,
    tags=["videos"],
)
async def generate(request: Request) -> Response:
    """Wait for the video and return the MP4 itself.

    With `Cache-Control: only-if-cached` nothing is rendered: 504 where no tier has it (RFC 9111, section 5.2.1.7).
    """
    check_storable(request)
    answer = await _service(request).generate(await read_request(request), only_if_cached=only_if_cached(request))
    headers = {
        "Cache-Status": cache_status(answer.outcome, stored=answer.stored),
        "Content-Disposition": disposition(answer.keys.video[:16], "video/mp4"),
        "ETag": f'"{answer.entry.digest}"',
        "X-Encore-Outcome": answer.outcome.value,
        "X-Encore-Key": answer.keys.video,
        "X-Encore-Seed": str(answer.spec.seed),
        "X-Encore-Stored": "true" if answer.stored else "false",
    }
    if answer.embedding is not None:
        headers["X-Encore-Embedding"] = answer.embedding
    if answer.corrected:
        headers["X-Encore-Corrected"] = ", ".join(
            f"{percent(each.found)}={percent(each.used)}" for each in answer.corrected
        )
    if answer.notice is not None:
        headers["X-Encore-Notice"] = sentence(answer.notice)
    return Response(answer.entry.data, headers=header_fields(headers), media_type="video/mp4")


@router.get("/v1/videos", responses=errors(404), tags=["videos"])
async def list_videos(
    request: Request,
    after: Annotated[str | None, Query(description="the last id of the page before", max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """List jobs, newest first unless `order=asc`."""
    page = await _service(request).jobs.page(after=after, limit=limit, order=order)
    data = [video_object(job).model_dump() for job in page.jobs]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": page.has_more,
    }


_NOT_HERE: dict[str, Any] = {"requestBody": {"content": {}}}


@router.post("/v1/videos/{video_id}/remix", include_in_schema=False, openapi_extra=_NOT_HERE)
@router.post("/v1/videos/edits", include_in_schema=False, openapi_extra=_NOT_HERE)
@router.post("/v1/videos/extensions", include_in_schema=False, openapi_extra=_NOT_HERE)
@router.post("/v1/videos/characters", include_in_schema=False, openapi_extra=_NOT_HERE)
@router.get("/v1/videos/characters", include_in_schema=False)
@router.get("/v1/videos/characters/{character_id}", include_in_schema=False)
async def not_here(request: Request) -> Response:
    """Answer the calls of OpenAI's API that change a video or take something from one."""
    raise NotSupported(
        f"{request.method} {request.url.path[:200]} is not supported here: this server makes videos from a prompt and "
        "a first image (POST /v1/videos); remixes, edits, extensions and characters it has none."
    )


@router.get("/v1/videos/{video_id:video_id}", response_model=VideoObject, responses=errors(404), tags=["videos"])
async def retrieve(request: Request, video_id: str) -> Response:
    """Return a job's state; `progress` is the share of denoising steps really done."""
    return _job_response(await _service(request).jobs.get(video_id))


@router.get("/v1/videos/{video_id}/events", responses=errors(404) | _EVENTS, response_class=Response, tags=["videos"])
async def events(
    request: Request,
    video_id: str,
    last_event_id: Annotated[str | None, Header(description="go on after the event with this id")] = None,
) -> Response:
    """Follow a job as server-sent events, as EventSource reads them: its state, step and seconds left, to its end."""
    told = await _service(request).jobs.events(video_id, last_event_id)
    return Response(status_code=204) if told is None else EventStream(told)


@router.delete("/v1/videos/{video_id:video_id}", responses=errors(404), tags=["videos"])
async def delete(request: Request, video_id: str) -> dict[str, Any]:
    """Delete a job; a render nobody else waits for ends at its next step. Shared videos stay cached."""
    await _service(request).jobs.delete(video_id)
    return {"id": video_id, "object": "video.deleted", "deleted": True}


@router.head("/v1/videos/{video_id}/content", include_in_schema=False)
@router.get("/v1/videos/{video_id}/content", responses=_CONTENT, response_class=Response, tags=["videos"])
async def content(
    request: Request,
    video_id: str,
    variant: Annotated[
        Variant,
        Query(description="the video, its middle frame (WebP), or up to 16 of its frames in one picture (JPEG)"),
    ] = Variant.VIDEO,
) -> Response:
    """Return a completed job's MP4, or a picture of it; understands If-None-Match and Range.

    With the setting `s3_redirect` a video that only S3 has is answered with 307 to where it lies.
    """
    if variant is Variant.VIDEO and request.method == "GET" and "if-none-match" not in request.headers:
        located = await _service(request).jobs.location(video_id, disposition(video_id, variant.media_type))
        if located is not None:
            return redirection(*located)
    entry, job, outcome = await _service(request).jobs.content(video_id, variant)
    headers = {
        "Cache-Status": cache_status(outcome),
        "X-Encore-Key": job.keys.video,
        "Content-Disposition": disposition(job.id, variant.media_type),
    }
    return content_response(request, entry, variant.media_type, headers)


@router.post("/v1/explain", responses=_VIDEO_ERRORS, openapi_extra=_BODY, tags=["cache"])
async def explain(request: Request) -> dict[str, Any]:
    """Tell what a request means: normalised prompt, keys, and which tier holds its video. Renders nothing."""
    return await _service(request).explain(await read_request(request))


@router.post("/invalidate", responses=errors(409), tags=["cache"])
async def invalidate(
    request: Request, key: Annotated[str, Query(json_schema_extra={"pattern": "^[0-9a-f]{64}$"})]
) -> dict[str, Any]:
    """Delete the video of a key from every tier."""
    return await _service(request).invalidate(key)


@router.post("/v1/cache/invalidate", responses=WITH_BODY | errors(404, 409), openapi_extra=_INVALIDATE, tags=["cache"])
async def invalidate_where(request: Request) -> dict[str, Any]:
    """Invalidate by key, prompt, model, fingerprint, tag or age: every tier, every replica within a second."""
    return await _service(request).invalidate_where(parse_invalidation(await read_object(request)))


@router.get("/v1/stats", tags=["cache"])
async def stats(request: Request) -> dict[str, Any]:
    """Return counts of the replica that answers; the cluster's sums are in the metrics."""
    return await _service(request).stats()


@router.head("/v1/models", include_in_schema=False)
@router.get("/v1/models", tags=["server"])
async def models(request: Request) -> dict[str, Any]:
    """List the models with their ranges and defaults."""
    return {"object": "list", "data": [await _model(_service(request))]}


@router.head("/v1/models/{model_id:path}", include_in_schema=False)
@router.get("/v1/models/{model_id:path}", responses=errors(404), tags=["server"])
async def model(request: Request, model_id: str) -> dict[str, Any]:
    """Return one model, by its name or an alias of it, with its ranges and defaults."""
    service = _service(request)
    card = service.planner.card
    if model_id not in (card.name, *card.aliases):
        raise no_such_model(model_id, card)
    return await _model(service)


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", tags=["server"])
async def healthz() -> dict[str, str]:
    """Say that this replica answers."""
    return {"status": "ok"}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", tags=["server"])
async def readyz(request: Request) -> dict[str, Any]:
    """Say what of the shared tiers does not work; 200 as long as requests are answered, which needs none of them."""
    return await _service(request).readiness()


async def _model(service: VideoService) -> dict[str, Any]:
    return model_object(service.planner.card) | {"batch_invariant": await service.batch_invariant()}


def _job_response(job: Job) -> Response:
    return Response(
        video_object(job).model_dump_json(),
        headers=header_fields({"Cache-Status": cache_status(job.outcome)}),
        media_type="application/json",
    )
