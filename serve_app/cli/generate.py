"""`encore generate`: make a job, follow it, store its file, say how it came.

The job is followed here and not by `Encore.generate`, because Ctrl-C has to know which job to delete, and because
a progress bar needs no time limit.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FrameType
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from serve_app.cli.fields import Fields
from serve_app.cli.output.destination import Save, opened
from serve_app.cli.retry import RETRY_SECONDS, patient
from serve_app.client import Encore, Job, JobEvent, error_mapping
from serve_app.client.calls import Variant
from serve_app.core import JobStatus
from serve_app.errors import EncoreError, InvalidRequest

POLL_INTERVAL = 0.2  # seconds; a poll costs the server about a millisecond

Tell = Callable[[Job, str], None]
Thumbnails = Mapping[Variant, str | None]
"""The files that pictures of the video go to; None: not asked for."""


def generate(
    prompt: str,
    fields: Fields,
    *,
    output: str | None,
    pictures: Thumbnails,
    force: bool,
    url: str | None,
    as_json: bool,
) -> None:
    """Get the video of `prompt` and pictures of it, save them as `output.opened` describes, print how it came.

    Raises what the client, the render and the places raise. With `-` as a place the report goes to standard error.
    """
    with Encore(url) as encore, ExitStack() as stack:
        save = stack.enter_context(opened(output, force=force))
        saves = _opened_beside(stack, output, pictures)
        began = time.monotonic()
        with progress_bar() as tell:
            job = follow(encore, prompt, fields, tell)
        data = encore.content(job.id)
        waited = time.monotonic() - began
        name = save(data, _key(job))
        beside = {each: keep(encore.content(job.id, variant=each), _key(job)) for each, keep in saves.items()}
    if job.notice is not None:
        typer.echo(f"encore: {job.notice}", err=True)
    report = _report(job, name, len(data), waited) | beside
    typer.echo(json.dumps(report) if as_json else _told(report), err=None in (name, *beside.values()))


def follow(encore: Encore, prompt: str, fields: Fields, tell: Tell) -> Job:
    """Return the completed job of `prompt`; raises what it failed with.

    Ctrl-C deletes the job and goes on up as a KeyboardInterrupt that says so.
    """
    job: Job | None = None
    try:
        with interrupt_postponed():
            job = encore.create(prompt, **fields)
        tell(job, "")
        for seen, detail in _seen(encore, job):
            job = seen
            tell(job, detail)
    except KeyboardInterrupt:
        if job is None or job.status.is_final:
            raise
        raise KeyboardInterrupt(_stopped(encore, job)) from None
    if job.status is JobStatus.FAILED:
        error = job.error
        raise error_mapping.of_job(error.code, error.message) if error else EncoreError(f"Job {job.id} failed.")
    return job


def _seen(encore: Encore, job: Job) -> Iterator[tuple[Job, str]]:
    """Yield the job as it changes, with what is known beside the percentage; a server without events is polled."""
    if not job.status.is_final:
        try:
            for event in encore.events(job.id):
                job = event.job
                yield job, _detail(event)
        except EncoreError:
            job = _looked_at(encore, job)  # raises what is really wrong
            yield job, ""
    while not job.status.is_final:
        time.sleep(POLL_INTERVAL)
        job = _looked_at(encore, job)
        yield job, ""


def _looked_at(encore: Encore, job: Job) -> Job:
    return patient(partial(encore.retrieve, job.id), RETRY_SECONDS)


def _detail(event: JobEvent) -> str:
    if event.step is None or event.total_steps is None or event.job.status is not JobStatus.IN_PROGRESS:
        return ""
    left = "" if event.eta_seconds is None else f", {event.eta_seconds:.0f} s left"
    return f"step {event.step} of {event.total_steps}{left}"


def _opened_beside(stack: ExitStack, output: str | None, pictures: Thumbnails) -> dict[Variant, Save]:
    places = {variant: place for variant, place in pictures.items() if place is not None}
    if len({output, *places.values()}) <= len(places):
        raise InvalidRequest("The video and its pictures need a place each.", param="output")
    return {variant: stack.enter_context(opened(place, force=False)) for variant, place in places.items()}


@contextmanager
def progress_bar() -> Iterator[Tell]:
    """Show a bar on standard error, if that is a terminal; it is gone afterwards."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("asking", total=100, detail="")

        def tell(job: Job, detail: str) -> None:
            progress.update(bar, completed=job.progress, description=job.status.replace("_", " "), detail=detail)

        yield tell


@contextmanager
def interrupt_postponed() -> Iterator[None]:
    """Hold back a first Ctrl-C: between sending a request and reading its answer there is a job without a known id."""
    pressed = False

    def hold(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    previous = signal.getsignal(signal.SIGINT)
    if previous is not signal.default_int_handler:  # ignored (a script's background job) or another handler's
        yield
        return
    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if pressed:
        raise KeyboardInterrupt


def _stopped(encore: Encore, job: Job) -> str:
    try:
        encore.delete(job.id)
    except EncoreError as error:
        return f"Job {job.id} could not be deleted: {error.message}"
    return f"Stopped; job {job.id} is deleted."


def _key(job: Job) -> str:
    if job.cache is None or job.cache.outcome is None or job.cache.key is None:
        raise EncoreError(f"Job {job.id} is completed but does not say how it was made.")
    return job.cache.key


def _report(job: Job, name: str | None, size: int, waited: float) -> dict[str, Any]:
    cache = job.cache
    return {
        "outcome": cache and cache.outcome,
        "key": cache and cache.key,
        "embedding": cache and cache.embedding,
        "seconds": round(waited, 3),
        "file": name,
        "bytes": size,
        "id": job.id,
        "model": job.model,
        "seed": job.seed,
        "size": job.size,
        "num_frames": job.extra.get("num_frames"),
        "fps": job.extra.get("fps"),
        "corrected": job.extra.get("corrected", []),
        "notice": job.notice,
    }


def _told(report: dict[str, Any]) -> str:
    video = f"{report['size']}, {report['num_frames']} frames at {report['fps']} fps, seed {report['seed']}"
    lines = {
        "outcome": f"{report['outcome']} in {report['seconds']:.2f} seconds",
        "file": f"{report['file'] or 'standard output'} ({report['bytes']:,} bytes)",
        "video": video,
        "key": report["key"],
    }
    lines |= {name: report[name] or "standard output" for name in ("thumbnail", "spritesheet") if name in report}
    if report["corrected"]:
        words = ", ".join(f"{word['from']} → {word['to']}" for word in report["corrected"])
        lines["read as"] = f"{words} (--no-correct-typos refuses that)"
    width = max(map(len, lines)) + 2
    return "\n".join(f"{name:<{width}}{value}" for name, value in lines.items())
