"""A tiny Wan TI2V checkpoint, which makes videos from text and from pictures, and such pictures."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve_app.model.model import Family
from serve_app.settings import Settings
from serve_app.wiring.model import open_family
from tests.serve_app.service.local_renderer import LocalRenderer
from tests.serve_app.service.rig import Rig

SMALL: dict[str, Any] = {"size": "96x64", "num_frames": 9, "num_inference_steps": 3}


def picture(seed: int = 0, form: str = "PNG", size: tuple[int, int] = (96, 64), **options: Any) -> bytes:
    """A file of colours and edges; equal seeds and sizes are equal pixels."""
    drawn = np.random.default_rng(seed).integers(0, 255, (4, 6, 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(drawn).resize(size, Image.Resampling.NEAREST).save(out, form, **options)
    return out.getvalue()


@pytest.fixture
def settings(wan_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of the model that takes an image."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return Settings(model="wan2.2-t2v-5b", checkpoint=str(wan_folder()), dtype="float32")


@pytest.fixture
def family(settings: Settings) -> Family:
    """The model that takes an image."""
    return open_family(settings)


@pytest.fixture
async def local(rig: Rig, family: Family) -> AsyncIterator[LocalRenderer]:
    """Its parts behind a rig's routers."""
    parts = family.load_text_encoder("cpu"), family.load_denoiser("cpu"), family.load_decoder("cpu")
    made = LocalRenderer(rig, parts, family.card.model_fingerprint)
    await made.engine.start()
    yield made
    await made.engine.stop()
