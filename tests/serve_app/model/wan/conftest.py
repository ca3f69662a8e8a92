"""Wan's tests: one torch thread, digests remembered in a folder of each test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline

from serve_app.model.wan.wan import WanFamily, from_folder
from tests.serve_app.model.wan.reference import Reference


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture(scope="session")
def wan(wan_folder: Callable[..., Path]) -> Callable[..., WanFamily]:
    """Return the family of a tiny checkpoint of a kind, in float32."""
    return lambda kind: from_folder(wan_folder(kind), "float32")


@pytest.fixture(scope="session")
def pipeline(wan_folder: Callable[..., Path]) -> Callable[..., Reference]:
    """Return diffusers' own pipeline of a tiny checkpoint of a kind, loaded once."""
    known: dict[Any, Reference] = {}

    def of(kind: Any) -> Reference:
        if kind not in known:
            known[kind] = Reference(WanPipeline.from_pretrained(wan_folder(kind)))
        return known[kind]

    return of


@pytest.fixture(scope="session")
def image_pipeline(wan_folder: Callable[..., Path]) -> Reference:
    """Return diffusers' own pipeline for images of a tiny TI2V checkpoint."""
    return Reference(WanImageToVideoPipeline.from_pretrained(wan_folder()))
