"""A picture through every door of a real cluster to a tiny Wan checkpoint, and out as a film."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from serve_app.client import Encore
from serve_app.core import Outcome
from serve_app.media import probe
from tests.end_to_end.conftest import Cluster

pytestmark = pytest.mark.cluster
PREFIX = "/from-image"


def photo(seed: int) -> bytes:
    """A PNG too large for a body of text, and of another shape than the video."""
    noise = np.random.default_rng(seed).integers(0, 255, (700, 900, 3)).astype(np.uint8)
    Image.fromarray(noise).save(out := io.BytesIO(), "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def url(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Deploy a second application beside the first, of a model that takes a picture; its address."""
    from ray import serve

    from deployments.app import build
    from tests.serve_app.model.wan import tiny_checkpoint

    folder: Path = tiny_checkpoint.save(tmp_path_factory.mktemp("wan") / "tiny", tiny_checkpoint.TI2V_5B)
    more = {"model": "wan2.2-t2v-5b", "checkpoint": str(folder), "dtype": "float32"}
    serve.run(build(cluster.settings.model_copy(update=more)), name="from-image", route_prefix=PREFIX)
    yield cluster.url + PREFIX
    serve.delete("from-image")


def test_a_picture_through_every_door(url: str) -> None:
    """A file, the Python client and a handle make one video of one picture; another picture makes another."""
    from ray import serve

    fields = {"size": "96x64", "num_frames": 9, "num_inference_steps": 2}
    form = {"prompt": "a cat in Paris", **fields}
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        first, other = (
            http.post("/v1/videos/sync", data=form, files={"input_reference": ("a.png", photo(seed))})
            for seed in (1, 2)
        )
        assert (first.status_code, first.headers["x-encore-outcome"]) == (200, "rendered"), first.text
        assert probe(first.content).num_frames == 9
        assert other.headers["x-encore-key"] != first.headers["x-encore-key"]
        assert other.content != first.content
        job = http.post("/v1/videos", data=form | {"seed": "3"}, files={"input_reference": ("a.png", photo(1))}).json()
        end = time.monotonic() + 60
        while job["status"] not in ("completed", "failed") and time.monotonic() < end:
            time.sleep(0.1)
            job = http.get(f"/v1/videos/{job['id']}").json()
        assert (job["status"], job["cache"]["outcome"]) == ("completed", "rendered")
    with Encore(url) as client:
        again = client.generate_sync("a cat in Paris", input_reference=photo(1), **fields)
    assert again.data == first.content
    handle = serve.get_app_handle("from-image")
    made = handle.generate.remote("a cat in Paris", input_reference=photo(1), **fields).result(timeout_s=60)
    assert (made.outcome, made.entry.data) == (Outcome.L1, first.content)
