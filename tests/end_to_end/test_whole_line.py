"""One request through all four deployments and back, over every door, and what survives a killed replica."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import ray

from serve_app.cache.cache import TieredCache
from serve_app.client import Encore
from serve_app.core import Outcome
from serve_app.media import probe
from serve_app.model.native.config import DEMO_SIZES
from serve_app.schema import parse_request
from serve_app.telemetry import Telemetry
from serve_app.wiring.model import open_planner
from serve_app.wiring.tiers import open_cache, open_tiers
from tests.end_to_end.conftest import Cluster

pytestmark = pytest.mark.cluster
SMALLEST, LARGEST, LONG = (
    f"{width}x{height}"
    for width, height in (
        min(DEMO_SIZES), max(DEMO_SIZES), min(DEMO_SIZES, key=lambda size: abs(size[0] * size[1] - 96 * 96))
    )
)  # fmt: skip
"""Of what the demo offers; LONG lasts some seconds, but not a minute."""


def sync(http: httpx.Client, prompt: str, **fields: Any) -> httpx.Response:
    return http.post("/v1/videos/sync", json={"prompt": prompt, **fields})


def test_rendered_then_l1(cluster: Cluster) -> None:
    """The first request is rendered and stored, the second is the same bytes from memory, and both say so."""
    with cluster.http() as http:
        first, second = (sync(http, "a yellow triangle bounces") for _ in range(2))
    assert probe(first.content).num_frames == 16
    assert first.headers["cache-status"] == "encore; fwd=miss; stored"
    assert second.headers["cache-status"] == "encore; hit; detail=l1"
    assert (second.content, second.headers["etag"]) == (first.content, first.headers["etag"])


def test_identical_requests_at_once_share_one_render(cluster: Cluster) -> None:
    """Eight concurrent identical requests: one `rendered`, seven `joined`, one set of bytes."""
    with cluster.http() as http, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: sync(http, "eight friends want one video"), range(8)))
    outcomes = sorted(answer.headers["x-encore-outcome"] for answer in answers)
    assert outcomes == ["joined"] * 7 + ["rendered"]
    assert len({answer.content for answer in answers}) == 1


def test_progress_is_real(cluster: Cluster) -> None:
    """A job's progress passes through intermediate percentages while it renders, and never falls."""
    seen: list[int] = []
    with Encore(cluster.url) as client:
        made = client.generate(
            "a slow purple comet", num_inference_steps=50, num_frames=24, on_progress=seen.append, poll_interval=0.05
        )
    assert made.outcome == "rendered"
    assert seen == sorted(seen)
    assert len({percent for percent in seen if 0 < percent < 100}) >= 3
    assert seen[-1] == 100


def test_a_handle_is_a_door_too(cluster: Cluster) -> None:
    """`serve.get_app_handle` offers generate, explain, stats and invalidate with the same answers as HTTP."""
    from ray import serve

    handle = serve.get_app_handle("encore")
    made = handle.generate.remote("a handle asks", seed=7).result(timeout_s=60)
    assert (made.outcome, made.spec.seed, probe(made.entry.data).num_frames) == (Outcome.RENDERED, 7, 16)
    explained = handle.explain.remote("A handle asks!", seed=7).result(timeout_s=60)
    assert explained["keys"]["video"] == made.keys.video
    assert explained["tiers"] == {"l1": True, "l2": True, "l3": True}
    assert handle.stats.remote().result(timeout_s=60)["model"] == "native/demo"
    assert set(handle.invalidate.remote(made.keys.video).result(timeout_s=60)["deleted"]) == {"l1", "l2", "l3"}
    assert handle.generate.remote("a handle asks", seed=7).result(timeout_s=60).outcome == Outcome.RENDERED


def test_the_embedding_is_cached_separately(cluster: Cluster) -> None:
    """A new seed for a known prompt is rendered anew but finds the prompt's embedding."""
    with cluster.http() as http:
        first = sync(http, "one prompt, many seeds", seed=1)
        second = sync(http, "one prompt, many seeds", seed=2)
    assert first.headers["x-encore-embedding"] == "miss"
    assert (second.headers["x-encore-outcome"], second.headers["x-encore-embedding"]) == ("rendered", "hit")
    assert first.content != second.content


def test_invalidate_reaches_every_tier(cluster: Cluster) -> None:
    """After `POST /invalidate` no tier has the key, and the next request renders."""
    with cluster.http() as http:
        key = sync(http, "forget me").headers["x-encore-key"]
        assert set(http.post("/invalidate", params={"key": key}).json()["deleted"]) == {"l1", "l2", "l3"}
        assert http.post("/v1/explain", json={"prompt": "forget me"}).json()["tiers"] == {
            "l1": False, "l2": False, "l3": False
        }  # fmt: skip
        assert sync(http, "forget me").headers["x-encore-outcome"] == "rendered"


def test_another_frame_rate_is_decoded_from_latents(cluster: Cluster) -> None:
    """The same prompt at another fps or quality is answered from kept latents: no denoising step is done for it."""
    with cluster.http() as http:
        assert sync(http, "slow it down").headers["x-encore-outcome"] == "rendered"
        wait(lambda: http.get("/v1/stats").json()["renderer"]["running"] == 0)
        steps = http.get("/v1/stats").json()["renderer"]["steps_done"]
        for other in ({"fps": 8}, {"quality": 40}):
            again = wait_for(lambda other=other: sync(http, "slow it down", **other), 10)
            assert again.headers["x-encore-outcome"] == "latents"
        assert http.get("/v1/stats").json()["renderer"]["steps_done"] == steps


def test_an_interactive_request_passes_waiting_batch_jobs(cluster: Cluster) -> None:
    """With more batch jobs than a replica takes, a request that somebody waits for is answered before most of them."""
    small = {"size": SMALLEST, "num_frames": 8, "num_inference_steps": 30}
    with cluster.http() as http:
        jobs = [
            http.post("/v1/videos", json={"prompt": f"batch job {i}", "priority": "batch", **small}).json()["id"]
            for i in range(20)
        ]
        assert sync(http, "somebody waits", **(small | {"num_inference_steps": 4})).status_code == 200
        states = [http.get(f"/v1/videos/{job}").json()["status"] for job in jobs]
        assert states.count("completed") <= 10
        for job in jobs:
            wait(lambda job=job: http.get(f"/v1/videos/{job}").json()["status"] == "completed")


def test_delete_ends_the_render(cluster: Cluster) -> None:
    """Deleting the only job of a running render ends it: the engine goes idle long before the render could be done."""
    with cluster.http() as http:
        job = http.post(
            "/v1/videos",
            json={"prompt": "never finished", "num_inference_steps": 50, "num_frames": 24, "size": LARGEST},
        ).json()
        wait(lambda: http.get(f"/v1/videos/{job['id']}").json()["status"] == "in_progress")
        assert http.delete(f"/v1/videos/{job['id']}").json()["deleted"] is True
        wait(lambda: http.get("/v1/stats").json()["renderer"]["running"] == 0)
        assert http.get(f"/v1/videos/{job['id']}").status_code == 404


def test_metrics_reach_rays_endpoint(cluster: Cluster) -> None:
    """Requests by outcome, tier reads and render seconds can be scraped where Ray's own metrics are."""
    with cluster.http() as http:
        sync(http, "count me")
        sync(http, "count me")

    def scraped() -> bool:
        text = httpx.get(f"{cluster.metrics_url}/metrics", trust_env=False).text
        wanted = ('outcome="rendered"', 'outcome="l1"', "ray_encore_tier_read", "ray_encore_render")
        return all(word in text for word in wanted)

    wait(scraped)


def test_a_killed_router_costs_no_render(cluster: Cluster) -> None:
    """The router that started a render is killed; the render finishes, is stored, and the job is found completed."""
    request = {"prompt": "the router dies", "num_inference_steps": 50, "num_frames": 24, "size": LONG}
    with cluster.http() as http:
        job = http.post("/v1/videos", json=request).json()
        wait(lambda: http.get(f"/v1/videos/{job['id']}").json()["progress"] > 0)
        before = len(stored(cluster, request) or b"")
        kill("CacheRouter")
        wait(lambda: stored(cluster, request) is not None)
        assert before == 0
        wait(lambda: answers(http, f"/v1/videos/{job['id']}").get("status") == "completed")
        again = wait_for(lambda: sync(http, **request), 60)
        assert again.headers["x-encore-outcome"] in ("l1", "l2")


def test_a_killed_diffusion_replica_is_asked_anew(cluster: Cluster) -> None:
    """The replica that renders is killed; the waiting request is rendered by its successor and answered."""
    request = {"prompt": "the renderer dies", "num_inference_steps": 50, "num_frames": 24, "size": LONG}
    with cluster.http() as http, ThreadPoolExecutor(1) as thread:
        answer = thread.submit(http.post, "/v1/videos/sync", json=request, timeout=120)
        wait(lambda: http.get("/v1/stats").json()["renderer"].get("running", 0) > 0)
        kill("Diffusion")
        assert answer.result().status_code == 200
        assert answer.result().headers["x-encore-outcome"] == "rendered"


def stored(cluster: Cluster, request: dict[str, Any]) -> bytes | None:
    """Return the video of `request` from the shared tiers, asked without any router."""

    async def look() -> bytes | None:
        telemetry = Telemetry()
        key = open_planner(cluster.settings).plan(parse_request(request)).keys.video
        cache: TieredCache = open_cache("video", cluster.settings, open_tiers(cluster.settings, telemetry), telemetry)
        found = await cache.get(key)
        await cache.aclose()
        return None if found is None else found[0].data

    return asyncio.run(look())


def kill(deployment: str) -> None:
    """End one replica of `deployment` at once, as a crash would."""
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["name"].startswith(f"SERVE_REPLICA::encore#{deployment}#"):
            ray.kill(ray.get_actor(actor["name"], namespace=actor["namespace"]), no_restart=True)
            return
    raise AssertionError(f"no replica of {deployment}")


def answers(http: httpx.Client, path: str) -> dict[str, Any]:
    """Return the JSON at `path`, empty while nobody answers."""
    try:
        response = http.get(path)
    except httpx.TransportError:
        return {}
    return dict(response.json()) if response.status_code == 200 else {}


def wait_for(ask: Any, seconds: float) -> httpx.Response:
    """Repeat `ask` until it answers 200."""
    end = time.monotonic() + seconds
    while True:
        try:
            response: httpx.Response = ask()
        except httpx.TransportError:
            response = httpx.Response(599)
        if response.status_code == 200 or time.monotonic() > end:
            assert response.status_code == 200, response.text
            return response
        time.sleep(0.2)


def wait(condition: Any, seconds: float = 300) -> None:
    """Wait until `condition` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.05)
