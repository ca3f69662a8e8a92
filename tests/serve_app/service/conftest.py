"""Rigs over a folder, with and without a real Valkey, closed when the test ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import ValkeyServer
from tests.serve_app.service.rig import Rig


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(tmp_path / "l3")
    yield made
    await made.aclose()


@pytest.fixture
async def shared_rig(tmp_path: Path, valkey_server: ValkeyServer) -> AsyncIterator[Rig]:
    valkey_server.flush()
    made = Rig(tmp_path / "l3", valkey_server.url)
    yield made
    await made.aclose()
