"""Every route over a real service: status, form, headers, and the unmodified OpenAI SDK through the same door."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import httpx2
import openai
import pytest
from fastapi import FastAPI

from serve_app.core import Priority, Urgency
from serve_app.media import spritesheet, thumbnail
from serve_app.schema import VideoRequest
from tests.serve_app.api.conftest import FILM
from tests.serve_app.api.http.test_body import error_of
from tests.serve_app.service.rig import LARGEST, Rig, until

ASK = {"prompt": "a red circle moves left"}


async def finished(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    """Submit a job and poll it to its end."""
    job = (await http.post("/v1/videos", json=ASK | fields)).json()
    async with asyncio.timeout(30):
        while job["status"] not in ("completed", "failed"):
            await asyncio.sleep(0.002)
            job = (await http.get(f"/v1/videos/{job['id']}")).json()
    return dict(job)


async def test_a_jobs_life(rig: Rig, http: httpx.AsyncClient) -> None:
    """Created, seen in progress with real percents, completed with its cause, listed, deleted, gone."""
    rig.renderer.hold()
    answer = await http.post("/v1/videos", json=ASK | {"seed": 7})
    job = answer.json()
    assert answer.status_code == 200
    assert answer.headers["cache-status"] == "encore; fwd=miss"
    assert job["status"] in ("queued", "in_progress")
    assert (job["object"], job["progress"], job["cache"]) == ("video", 0, None)
    assert (job["prompt"], job["size"], job["seconds"], job["seed"]) == (ASK["prompt"], "64x64", "1", 7)
    assert job["expires_at"] - job["created_at"] == 7 * 86_400
    rig.renderer.allow(2)
    path = f"/v1/videos/{job['id']}"

    async def halfway() -> bool:
        return bool((await http.get(path)).json()["progress"] >= 50)

    await until(halfway)
    job = (await http.get(path)).json()
    assert (job["status"], job["completed_at"]) == ("in_progress", None)
    early = await http.get(f"{path}/content")
    assert (early.status_code, early.json()["error"]["code"]) == (404, "not_found")
    rig.renderer.allow()
    done = await finished(http, seed=7)
    assert (await http.get(path)).json()["status"] == "completed"
    assert done["cache"]["key"] == rig.renderer.asked[0]
    content = await http.get(f"{path}/content")
    assert (content.status_code, content.headers["content-type"]) == (200, "video/mp4")
    assert content.headers["x-encore-key"] == done["cache"]["key"]
    deleted = await http.delete(path)
    assert deleted.json() == {"id": job["id"], "object": "video.deleted", "deleted": True}
    for method, where in (("GET", path), ("DELETE", path), ("GET", f"{path}/content"), ("HEAD", f"{path}/content")):
        assert (await http.request(method, where)).status_code == 404


async def test_sync(rig: Rig, http: httpx.AsyncClient) -> None:
    """The MP4 itself, with how it came, its key, seed and digest in the headers; the second time a hit."""
    first = await http.post("/v1/videos/sync", json=ASK)
    second = await http.post("/v1/videos/sync", json=ASK)
    assert first.status_code == second.status_code == 200
    assert first.content == second.content == await _stored(rig)
    assert int(first.headers["content-length"]) == len(first.content)
    told = ("x-encore-outcome", "cache-status", "x-encore-embedding", "x-encore-stored", "x-encore-seed")
    assert [first.headers.get(name) for name in told] == ["rendered", "encore; fwd=miss; stored", "miss", "true", "42"]
    assert [second.headers.get(name) for name in told] == ["l1", "encore; hit; detail=l1", None, "true", "42"]
    assert first.headers["etag"] == second.headers["etag"]
    assert first.headers["x-encore-key"] == rig.renderer.asked[0]


async def _stored(rig: Rig) -> bytes:
    found = await rig.cache().get(rig.renderer.asked[0])
    assert found is not None
    return found[0].data


async def test_joined_says_collapsed(rig: Rig, http: httpx.AsyncClient) -> None:
    """Of two requests for one render, one is told that it was collapsed into the other."""
    rig.renderer.hold()
    asked = [asyncio.create_task(http.post("/v1/videos/sync", json=ASK)) for _ in range(2)]
    await until(lambda: bool(rig.renderer.asked))
    await asyncio.sleep(0.02)
    rig.renderer.allow()
    told = sorted([(await one).headers["cache-status"] for one in asked])
    assert told == ["encore; fwd=miss; collapsed; stored", "encore; fwd=miss; stored"]


async def test_random_seed_comes_back(http: httpx.AsyncClient) -> None:
    """seed=random tells the seed it drew, in the header and in the job; asking for it is a hit."""
    sync = await http.post("/v1/videos/sync", json=ASK | {"seed": "random"})
    again = await http.post("/v1/videos/sync", json=ASK | {"seed": int(sync.headers["x-encore-seed"])})
    assert again.headers["x-encore-outcome"] == "l1"
    first, second = [await finished(http, seed="random") for _ in range(2)]
    assert first["seed"] != second["seed"]


@pytest.mark.parametrize("form", ["json", "data", "files"])
async def test_all_body_forms_mean_the_same(rig: Rig, http: httpx.AsyncClient, form: str) -> None:
    """JSON, URL-encoded and multipart give one key."""
    fields = {"prompt": "p", "seconds": "4", "size": LARGEST, "seed": "7"}
    width, height = map(int, LARGEST.split("x"))
    await http.post(
        "/v1/videos/sync",
        json={"prompt": "p", "num_frames": 24, "fps": 6, "width": width, "height": height, "seed": 7},
    )
    body: Any = {name: (None, value) for name, value in fields.items()} if form == "files" else fields
    answer = await http.post("/v1/videos/sync", **{form: body})
    assert answer.headers["x-encore-outcome"] == "l1"
    assert len(rig.renderer.asked) == 1


async def test_list_pages(http: httpx.AsyncClient) -> None:
    """Paging with `after` = `last_id` gives each job once; first_id, last_id and has_more are what the SDK reads."""
    empty = (await http.get("/v1/videos")).json()
    assert empty == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    ids = [(await finished(http, seed=seed))["id"] for seed in range(5)]
    for order, expected in (("asc", set(ids)), ("desc", set(ids))):
        walked: list[str] = []
        page: dict[str, Any] = {"has_more": True, "last_id": None}
        while page["has_more"]:
            after = {} if page["last_id"] is None else {"after": page["last_id"]}
            page = (await http.get("/v1/videos", params={"limit": 2, "order": order, **after})).json()
            assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
            walked += [job["id"] for job in page["data"]]
        assert (len(walked), set(walked)) == (5, expected)


@pytest.mark.parametrize(
    ("params", "status", "param"),
    [
        ({"limit": 0}, 422, "limit"), ({"limit": 101}, 422, "limit"), ({"limit": "x"}, 422, "limit"),
        ({"limit": 10**30}, 422, "limit"), ({"order": "up"}, 422, "order"), ({"after": "nobody"}, 404, "video_id"),
        ({"after": "x" * 300}, 422, "after"),
    ],
)  # fmt: skip
async def test_bad_pages(http: httpx.AsyncClient, params: dict[str, Any], status: int, param: str) -> None:
    """A bad query parameter is refused by name in the OpenAI form."""
    answer = await http.get("/v1/videos", params=params)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


async def test_invalidate(http: httpx.AsyncClient) -> None:
    """POST /invalidate?key= tells where the video was; a bad or missing key is refused by name."""
    key = (await http.post("/v1/videos/sync", json=ASK)).headers["x-encore-key"]
    assert (await http.post("/invalidate", params={"key": key})).json() == {"key": key, "deleted": ["l1", "l3"]}
    assert (await http.post("/invalidate", params={"key": key})).json() == {"key": key, "deleted": []}
    for params, status in (({"key": "../etc"}, 400), ({"key": ""}, 400), ({}, 422)):
        answer = await http.post("/invalidate", params=params)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, "key")


async def test_invalidate_where(http: httpx.AsyncClient) -> None:
    """POST /v1/cache/invalidate tells the rule, its epoch and what is gone; the video is then rendered anew."""
    made = await http.post("/v1/videos/sync", json={"prompt": "a tagged circle", "tags": ["spring"]})
    assert made.headers["X-Encore-Outcome"] == "rendered"
    told = (await http.post("/v1/cache/invalidate", json={"tag": "spring"})).json()
    assert told["rule"]["selector"] == "tag"
    assert told["deleted"] == {"l1": 1}
    assert told["epoch"] >= told["rule"]["before"]
    again = await http.post("/v1/videos/sync", data={"prompt": "a tagged circle", "tags": "spring,summer"})
    assert again.headers["X-Encore-Outcome"] == "rendered"
    assert (await http.get("/v1/stats")).json()["invalidation"]["rules"] >= 1


@pytest.mark.parametrize("body", [{}, {"tag": "a", "key": "b"}, {"tags": "a"}, {"tag": "x" * 65}, {"key": "short"}])
async def test_invalidate_where_refuses(http: httpx.AsyncClient, body: dict[str, str]) -> None:
    """No choice, several, and what is none are a 422 in the OpenAI form; a body that is no object is a 400."""
    answer = await http.post("/v1/cache/invalidate", json=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (422, "invalid_request_error")
    assert (await http.post("/v1/cache/invalidate", content=b"[]")).status_code == 400


async def test_explain_stats_models_healthz(rig: Rig, http: httpx.AsyncClient) -> None:
    """The small routes answer what they say, and explain renders nothing."""
    told = (await http.post("/v1/explain", json={"prompt": " A  circle!"})).json()
    assert (told["normalised"], set(told["keys"])) == ("a circle", {"prompt", "latents", "video"})
    assert told["tiers"] == {"l1": False, "l3": False}
    assert rig.renderer.asked == []
    stats = (await http.get("/v1/stats")).json()
    assert (stats["flights"], stats["waiting"], stats["renderer"]) == (0, 0, {"asked": 0})
    models = (await http.get("/v1/models")).json()
    (model,) = models["data"]
    assert (told["batch_invariant"], model["batch_invariant"]) == (None, None)  # this renderer does not say
    assert (models["object"], model["object"], model["id"]) == ("list", "model", "native/demo")
    assert model["parameters"]["num_frames"] == {"minimum": 8, "maximum": 24, "step": 1, "default": 16}
    assert model["parameters"]["quality"] == {"minimum": 0, "maximum": 51, "step": 1, "default": 23}
    assert model["parameters"]["guidance_scale"] == {"minimum": 1.0, "maximum": 15.0, "default": 2.0}
    assert (await http.get("/healthz")).json() == {"status": "ok"}


async def test_docs_work_offline(http: httpx.AsyncClient) -> None:
    """The documentation page names no other host, and all that it loads comes from here."""
    page = (await http.get("/docs")).text
    assert "http://" not in page
    assert "https://" not in page
    for path in ("swagger-ui.css", "swagger-ui-bundle.js", "favicon.png"):
        assert f"/static-offline-docs/{path}" in page
        assert (await http.get(f"/static-offline-docs/{path}")).status_code == 200


async def test_openapi(http: httpx.AsyncClient) -> None:
    """The OpenAPI document has each route with its methods, the fields of a request, and no dangling reference."""
    document = (await http.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.")
    assert {path: set(methods) for path, methods in document["paths"].items()} == {
        "/v1/videos": {"get", "post"}, "/v1/videos/sync": {"post"}, "/v1/videos/{video_id}": {"get", "delete"},
        "/v1/videos/{video_id}/content": {"get"}, "/v1/videos/{video_id}/events": {"get"},
        "/v1/explain": {"post"}, "/invalidate": {"post"}, "/v1/cache/invalidate": {"post"},
        "/v1/cache/warm": {"post"}, "/v1/cache/warm/{warm_up_id}": {"get", "delete"},
        "/v1/stats": {"get"}, "/v1/models": {"get"}, "/v1/models/{model_id}": {"get"}, "/healthz": {"get"},
        "/readyz": {"get"},
    }  # fmt: skip
    body = document["paths"]["/v1/videos"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    for form in body.values():
        assert set(form["schema"]["properties"]) == set(VideoRequest.model_fields)
    content = document["paths"]["/v1/videos/{video_id}/content"]["get"]
    assert set(content["responses"]["200"]["content"]) == {"video/mp4", "image/webp", "image/jpeg"}
    events = document["paths"]["/v1/videos/{video_id}/events"]["get"]
    assert set(events["responses"]["200"]["content"]) == {"text/event-stream"}
    assert [each["name"] for each in events["parameters"]] == ["video_id", "last-event-id"]
    headers = {each["name"] for each in document["paths"]["/v1/videos"]["post"]["parameters"]}
    assert headers == {"Idempotency-Key", "x-stainless-retry-count"}
    (variant,) = [each for each in content["parameters"] if each["name"] == "variant"]
    assert not variant["required"]
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(operation["description"] for operation in operations)
    for reference in _references(document):
        target = document
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for value in node.values() for found in _references(value)]
    return [found for value in node for found in _references(value)] if isinstance(node, list) else []


@pytest.fixture
def sdk(app: FastAPI) -> openai.AsyncOpenAI:
    client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app, raise_app_exceptions=False))
    return openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=client, max_retries=0)


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
async def test_the_openai_sdk(rig: Rig, sdk: openai.AsyncOpenAI) -> None:
    """The unmodified SDK creates (multipart), polls, downloads, lists over pages and deletes."""
    async with sdk:
        videos: Any = sdk.videos  # sizes and models are typed as OpenAI's own
        jobs = [
            await videos.create_and_poll(
                prompt="p",
                seconds="4",
                size="64x64",
                model="encore-demo",
                extra_body={"seed": seed},
                poll_interval_ms=5,
            )
            for seed in (1, 2, 1)
        ]
        assert [job.status for job in jobs] == ["completed"] * 3
        assert [job.model_extra["cache"]["outcome"] for job in jobs] == ["rendered", "rendered", "l1"]
        assert (jobs[0].model_extra["num_frames"], jobs[0].model_extra["fps"], jobs[0].seconds) == (24, 6, "4")
        data = await (await videos.download_content(jobs[0].id)).aread()
        assert data.startswith(b"video of ")
        await asyncio.sleep(0.01)  # a hit's record is written behind the answer, and this transport never yields
        assert len({job.id async for job in videos.list(limit=1)}) == 3
        assert (await videos.delete(jobs[0].id)).deleted
        with pytest.raises(openai.NotFoundError) as missing:
            await videos.retrieve(jobs[0].id)
        assert (missing.value.code, missing.value.param) == ("not_found", "video_id")
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            await videos.create(prompt="p", seconds="5000")
        assert refused.value.param == "seconds"
        with pytest.raises(openai.UnprocessableEntityError) as unknown:
            await videos.create(prompt="p", extra_body={"cache": {"mode": "exact"}})
        assert (unknown.value.code, unknown.value.param) == ("unknown_field", "cache[mode]")
        with pytest.raises(openai.UnprocessableEntityError) as poster:
            await videos.download_content(jobs[1].id, variant="poster")
        assert poster.value.param == "variant"
        with pytest.raises(openai.BadRequestError) as file:
            await videos.create(prompt="p", input_reference=("a.png", b"\x89PNG"))
        assert (file.value.code, file.value.param) == ("image_not_supported", "input_reference")


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
async def test_the_sdk_downloads_pictures(rig: Rig, sdk: openai.AsyncOpenAI) -> None:
    """`download_content(variant=...)` gives the thumbnail and the sprite sheet, with the type of each."""
    rig.renderer.data = FILM
    async with sdk:
        videos: Any = sdk.videos
        job = await videos.create_and_poll(prompt="p", poll_interval_ms=5)
        for variant, media_type, made in (
            ("thumbnail", "image/webp", thumbnail(FILM)),
            ("spritesheet", "image/jpeg", spritesheet(FILM)),
            ("video", "video/mp4", FILM),
        ):
            answer = await videos.download_content(job.id, variant=variant)
            assert (answer.response.headers["content-type"], await answer.aread()) == (media_type, made)


@pytest.mark.parametrize("form", ["json", "data", "files"])
async def test_quality_and_urgency_arrive_in_every_form(rig: Rig, http: httpx.AsyncClient, form: str) -> None:
    """The render gets quality, priority and deadline; the job tells the quality; the key knows nothing of urgency."""
    fields = {"prompt": "p", "quality": "30", "priority": "batch", "deadline_seconds": "90"}
    body: Any = {name: (None, value) for name, value in fields.items()} if form == "files" else fields
    job = (await http.post("/v1/videos", **{form: body})).json()
    await until(lambda: bool(rig.renderer.requests))
    done = await finished(http, prompt="p", quality=30)
    (request,) = rig.renderer.requests
    assert (job["quality"], request.spec.quality) == (30, 30)
    assert request.urgency == Urgency(Priority.BATCH, rig.clock.now + 90)
    assert done["cache"]["key"] == request.keys.video
    explained = [await http.post("/v1/explain", json={"prompt": "p", "quality": 30} | more) for more in ({}, fields)]
    assert explained[0].json() == explained[1].json()


@pytest.mark.parametrize(
    ("field", "value"),
    [("quality", 52), ("quality", -1), ("quality", 1.5), ("priority", "now"), ("deadline_seconds", 0)],
)
@pytest.mark.parametrize("route", ["/v1/videos", "/v1/videos/sync", "/v1/explain"])
async def test_impossible_quality_and_urgency(http: httpx.AsyncClient, route: str, field: str, value: Any) -> None:
    """Out of range they are a 422 in the OpenAI form that names the field, on every route."""
    answer = await http.post(route, json=ASK | {field: value})
    told = answer.json()["error"]
    assert (answer.status_code, told["type"], told["param"]) == (422, "invalid_request_error", field)


async def test_a_typo_is_corrected_and_told(rig: Rig, http: httpx.AsyncClient) -> None:
    """The job, the sync answer and the explanation say which word was read as which; a request can refuse it."""
    plain = await http.post("/v1/videos/sync", json={"prompt": "a red piano"})
    typed = await http.post("/v1/videos/sync", json={"prompt": "a red pianno"})
    assert (typed.headers["x-encore-outcome"], typed.headers["x-encore-corrected"]) == ("l1", "pianno=piano")
    assert "x-encore-corrected" not in plain.headers
    job = await finished(http, prompt="a blue pianno")
    told = [{"from": "pianno", "to": "piano"}]
    assert (job["corrected"], job["prompt"]) == (told, "a blue pianno")
    hit = (await http.post("/v1/videos", json={"prompt": "a blue pianno"})).json()
    assert (hit["status"], hit["corrected"]) == ("completed", told)
    assert (await http.post("/v1/explain", json={"prompt": "a pianno"})).json()["corrected"] == told
    kept = await finished(http, prompt="a blue pianno", correct_typos=False)
    assert (kept["corrected"], kept["cache"]["key"] == job["cache"]["key"]) == ([], False)


async def test_one_model(http: httpx.AsyncClient) -> None:
    """A model is found by its name, slash or percent-encoded slash, and by an alias; another is a 404 by name."""
    (listed,) = (await http.get("/v1/models")).json()["data"]
    for name in (listed["id"], listed["id"].replace("/", "%2F"), *listed["aliases"]):
        assert (await http.get(f"/v1/models/{name}")).json() == listed
    answer = await http.get("/v1/models/nope")
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "model")
    assert listed["id"] in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/healthz", "/v1/models", "/v1/models/native/demo"])
async def test_head(http: httpx.AsyncClient, path: str) -> None:
    """HEAD is answered wherever health checks and clients look before they ask."""
    answer, asked = await http.head(path), await http.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-length"] == asked.headers["content-length"]


async def test_files_have_names(rig: Rig, http: httpx.AsyncClient) -> None:
    """A browser that saves a video or a picture of it is told under which name."""
    rig.renderer.data, rig.renderer.meta = FILM, {"content_type": "video/mp4"}
    sync = await http.post("/v1/videos/sync", json={"prompt": "a red circle"})
    assert sync.headers["content-disposition"] == f'inline; filename="{sync.headers["x-encore-key"][:16]}.mp4"'
    job = (await http.post("/v1/videos", json={"prompt": "a red circle"})).json()["id"]
    for variant, ending in (("video", "mp4"), ("thumbnail", "webp"), ("spritesheet", "jpg")):
        answer = await http.get(f"/v1/videos/{job}/content", params={"variant": variant})
        assert answer.headers["content-disposition"] == f'inline; filename="{job}.{ending}"'


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/videos/video_1/remix"), ("POST", "/v1/videos/edits"), ("POST", "/v1/videos/extensions"),
        ("POST", "/v1/videos/characters"), ("GET", "/v1/videos/characters"), ("GET", "/v1/videos/characters/c"),
    ],
)  # fmt: skip
async def test_what_is_not_supported_says_so(http: httpx.AsyncClient, method: str, path: str) -> None:
    """Calls of OpenAI's API that are not here are refused as that, not as an unknown id or an unread body."""
    answer = await http.request(method, path, json={"prompt": "a red circle"} if method == "POST" else None)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "not_supported")


@pytest.mark.parametrize("path", ["/v1/videos", "/v1/videos/sync"])
async def test_only_if_cached(rig: Rig, http: httpx.AsyncClient, path: str) -> None:
    """A client that wants a stored video or none gets 504 and no render, or the video; no-cache changes nothing."""
    stored_or_none = {"Cache-Control": "max-age=0, Only-If-Cached"}
    fields = {"prompt": "a red circle"}
    answer = await http.post(path, json=fields, headers=stored_or_none)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "not_cached")
    assert rig.renderer.asked == []
    await http.post("/v1/videos/sync", json=fields)
    assert (await http.post(path, json=fields, headers=stored_or_none)).status_code == 200
    assert (await http.post(path, json=fields, headers={"Cache-Control": "no-cache"})).status_code == 200
    assert len(rig.renderer.asked) == 1


async def test_jobs_echo_what_was_asked(http: httpx.AsyncClient) -> None:
    """Every parameter that a job was made with is on it, and the metadata as they were sent, hit or not."""
    asked = {
        "prompt": "a red circle", "negative_prompt": "blur", "num_inference_steps": 3, "guidance_scale": 2.0,
        "seed": 7, "size": "64x64", "quality": 30, "priority": "batch", "tags": ["spring"],
        "metadata": {"shop": "north"}, "user": "u", "n": 1,
    }  # fmt: skip
    for _ in range(2):
        job = (await http.post("/v1/videos", json=asked)).json()
        assert {name: job[name] for name in asked if name not in ("user", "n")} == {
            name: value for name, value in asked.items() if name not in ("user", "n")
        }
        await http.post("/v1/videos/sync", json={k: v for k, v in asked.items() if k not in ("metadata", "user", "n")})
        assert (await http.get(f"/v1/videos/{job['id']}")).json()["metadata"] == {"shop": "north"}


async def test_stats_say_whose_they_are(http: httpx.AsyncClient) -> None:
    """The answer names the router whose counts it has, how many there are, and gives the sums over all."""
    await http.post("/v1/videos/sync", json={"prompt": "a red circle"})
    stats = (await http.get("/v1/stats")).json()
    assert stats["router"] == {"id": "router-1", "of": 1}
    assert stats["all_routers"]["outcomes"] == stats["outcomes"]


@pytest.mark.parametrize("path", ["/v1/videos", "/v1/videos/sync", "/v1/cache/warm"])
@pytest.mark.parametrize("value", ["no-store", "No-Store", "no-cache, no-store", "max-age=0,no-store "])
async def test_no_store_is_refused(rig: Rig, http: httpx.AsyncClient, path: str, value: str) -> None:
    """`no-store` (RFC 9111, 5.2.1.5), which a shared render cannot obey, is a 422 that names it; nothing is made."""
    body = {"templates": [ASK]} if path.endswith("warm") else ASK
    error = error_of(await http.post(path, json=body, headers={"Cache-Control": value}), 422)
    assert error["param"] == "Cache-Control"
    assert "no-store" in error["message"]
    assert rig.renderer.asked == []
    assert (await http.get("/v1/videos", headers={"Cache-Control": value})).status_code == 200
