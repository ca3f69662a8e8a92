"""What tests of several floors share: a model trained in seconds, and Wan checkpoints of random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.serve_app.model.training.short_run import ShortRun
from tests.serve_app.model.training.short_run import short_run as run


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> ShortRun:
    """A finished run of the short recipe, by one worker; nobody may write into it. Workers of xdist share one."""
    if worker_id == "master":
        return run(tmp_path_factory.mktemp("run") / "tiny")
    shared = tmp_path_factory.getbasetemp().parent / "short_run"
    with FileLock(f"{shared}.lock"):
        told = shared / "told.json"
        if not told.exists():
            made = run(shared / "tiny")
            told.write_text(json.dumps({"checkpoint": str(made.checkpoint), "losses": made.losses}))
        found = json.loads(told.read_text())
    return ShortRun(shared / "tiny", Path(found["checkpoint"]), found["losses"])


@pytest.fixture(scope="session")
def wan_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the folder of a tiny checkpoint of a kind, made at its first use; nobody may write into it."""
    from tests.serve_app.model.wan import tiny_checkpoint  # imports diffusers, which few tests need

    folders: dict[Any, Path] = {}

    def folder(kind: tiny_checkpoint.Kind = tiny_checkpoint.TI2V_5B) -> Path:
        if kind not in folders:
            folders[kind] = tiny_checkpoint.save(tmp_path_factory.mktemp("wan") / "tiny", kind)
        return folders[kind]

    return folder
