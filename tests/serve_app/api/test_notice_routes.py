"""Where a notice stands: on the job, in the sync answer's header, in the explanation, in what the model says."""

from __future__ import annotations

from urllib.parse import unquote

import httpx
from fastapi import FastAPI

from serve_app.client import AsyncEncore, replies
from tests.serve_app.service.rig import TINY, Rig, until

CAT = {"prompt": "a cat, 弹钢琴", **TINY}
TOLD = "The model did not understand: cat, 弹钢琴."


async def test_a_notice_is_on_the_job(http: httpx.AsyncClient) -> None:
    """A job has its notice when it is accepted, when it is completed, as a hit, and in the list."""
    job = (await http.post("/v1/videos", json=CAT)).json()
    assert TOLD in job["notice"]

    async def completed() -> bool:
        return bool((await http.get(f"/v1/videos/{job['id']}")).json()["status"] == "completed")

    await until(completed)
    assert (await http.get(f"/v1/videos/{job['id']}")).json()["notice"] == job["notice"]
    assert (await http.post("/v1/videos", json=CAT)).json()["notice"] == job["notice"]
    assert {each["notice"] for each in (await http.get("/v1/videos")).json()["data"]} == {job["notice"]}


async def test_a_hits_job_is_told_again_from_its_receipt(rig: Rig, http: httpx.AsyncClient) -> None:
    """A router that has no record of a hit's job tells what the stored settings say; the prompt is not stored."""
    await http.post("/v1/videos/sync", json=CAT)
    job = (await http.post("/v1/videos", json=CAT)).json()
    other = await rig.service().jobs.get(job["id"])
    assert "'num_inference_steps' from 4 to 30; with 2 nobody looked" in str(other.notice)


async def test_a_notice_is_a_header(http: httpx.AsyncClient) -> None:
    """The sync answer has it percent-encoded, rendered and as a hit; without a notice there is no header."""
    for _ in range(2):
        answer = await http.post("/v1/videos/sync", json=CAT)
        value = answer.headers["x-encore-notice"]
        assert value.isascii()
        assert "did not understand: cat" in value  # readable where it can be
        assert TOLD in unquote(value)
    plain = await http.post("/v1/videos/sync", json={"prompt": "a red circle moves left"})
    assert "x-encore-notice" not in plain.headers


async def test_explain_and_models_tell_it(http: httpx.AsyncClient) -> None:
    """Explain has the notice; the model says its sizes, what was judged, and that it can tell."""
    assert TOLD in (await http.post("/v1/explain", json=CAT)).json()["notice"]
    assert (await http.post("/v1/explain", json={"prompt": "a red circle"})).json()["notice"] is None
    (model,) = (await http.get("/v1/models")).json()["data"]
    assert TINY["size"] in model["sizes"]
    assert model["judged"]["num_inference_steps"] == [4, 30]
    assert model["notices_prompts"] is True


async def test_a_size_that_is_not_offered(http: httpx.AsyncClient) -> None:
    """A size that the model does not offer is a 422 on `size` at every door, and its message names those it does."""
    for route in ("/v1/videos", "/v1/videos/sync", "/v1/explain"):
        answer = await http.post(route, json={"prompt": "a red circle", "size": "40x40"})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (422, "size")
        assert TINY["size"] in error["message"]


async def test_openapi_documents_it(http: httpx.AsyncClient) -> None:
    """The document has the job's field and the header."""
    document = (await http.get("/openapi.json")).json()
    assert "notice" in document["components"]["schemas"]["VideoObject"]["properties"]
    sync = document["paths"]["/v1/videos/sync"]["post"]["responses"]["200"]
    assert "X-Encore-Notice" in sync["headers"]


async def test_the_client_reads_it(app: FastAPI, http: httpx.AsyncClient) -> None:
    """The Python client's video, job and explanation have the notice as text."""
    assert TOLD in str(replies.video(await http.post("/v1/videos/sync", json=CAT)).notice)
    async with AsyncEncore("http://localhost", transport=httpx.ASGITransport(app)) as encore:
        assert TOLD in str((await encore.create(**CAT)).notice)
        assert TOLD in str((await encore.explain(**CAT)).notice)
