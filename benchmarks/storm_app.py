"""Encore as it is, plus a note of every render that begins, kept outside of all that is under test.

Before a Diffusion replica's engine takes a render it appends one line (time, process id, what, key) to the file that
STORM_NOTES names. The kernel has the line before the first step is denoised, so SIGKILL the next moment cannot undo it,
and no cache, flight record or metric has a say in it. Prometheus' counters would not do: a killed replica takes along
what it has not exported, and counts a render only at its end. Latents that are decoded again are not renders.
No postponed annotations: Ray reads the type of `build`'s parameter.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.serve import Application

from deployments import app, diffusion
from serve_app.engine.engine import Rendering, StepEngine
from serve_app.settings import Settings
from serve_app.wiring import diffusion as wiring

VARIABLE = "STORM_NOTES"
READY, RENDER = "ready", "render"


@dataclass(frozen=True, slots=True)
class Note:
    """One line: when (Unix seconds), in which process, and what: a replica is `ready`, a `render` of `key` begins."""

    at: float
    pid: int
    what: str
    key: str


def write(what: str, key: str = "-") -> None:
    """Append a note; one write of a short line is atomic where the file is opened for appending."""
    line = f"{time.time():.6f} {os.getpid()} {what} {key}\n"
    file = os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def read(path: Path) -> list[Note]:
    """Return all notes so far, in the order they were written."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [Note(float(at), int(pid), what, key) for at, pid, what, key in map(str.split, lines)]


class NotedEngine(StepEngine):
    """Notes what it is asked to render, then renders it."""

    async def render(self, job_id: str, *args: Any, **options: Any) -> Rendering:
        write(RENDER, job_id)
        return await super().render(job_id, *args, **options)


class Diffusion(diffusion.Diffusion):
    """The product's own, over an engine that notes; Serve knows it under the same name."""

    async def __init__(self, *args: Any) -> None:
        wiring.StepEngine = NotedEngine
        await super().__init__(*args)
        write(READY)


def build(settings: Settings) -> Application:
    """Return the application `encore` with that Diffusion."""
    app.Diffusion = Diffusion
    return app.build(settings)
