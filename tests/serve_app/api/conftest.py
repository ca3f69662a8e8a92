"""The HTTP application over a rig, and a client that speaks to it in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from serve_app.api.api import build_api
from serve_app.media import encode_mp4
from tests.serve_app.service.rig import Rig

MAX_BODY_BYTES = 10_000
FILM = encode_mp4(np.random.default_rng(1).integers(0, 255, (5, 32, 32, 3)).astype(np.uint8), fps=4)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(tmp_path / "l3")
    yield made
    await made.aclose()


@pytest.fixture
def app(rig: Rig) -> FastAPI:
    return build_api(rig.service(max_queued=1), max_body_bytes=MAX_BODY_BYTES)


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client
