"""`encore warm`: send a file of templates to the server in parts, follow each, say what it came to.

The server does the work and skips what is there, so nothing is lost when this ends in the middle: the same command goes
on. A part is what one call takes, and templates are filled in only as parts are sent, so a file may stand for a million
videos.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import typer

from serve_app.cli.generate import interrupt_postponed
from serve_app.cli.output.progress import Bars, bars
from serve_app.cli.retry import RETRY_SECONDS, patient
from serve_app.cli.warm_file import TemplateFile, read_templates
from serve_app.client import Encore, WarmUp
from serve_app.errors import Busy, EncoreError, InvalidRequest, Unavailable
from serve_app.schema.templates import Item, Templates

T = TypeVar("T")

PART_ITEMS = 10_000
PART_BYTES = 500_000
"""Of prompts in one call; a server's default for a whole body is twice that."""
POLL_INTERVAL = 0.5
"""How long a server may be away, or say that it is busy, before this gives up."""
_PLACE = re.compile(r"templates\[(\d+)\]")


@dataclass(slots=True)
class Part:
    """What one call sends: templates that have no combinations left, and the numbers they have in the file."""

    templates: list[dict[str, Any]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    items: int = 0


@dataclass(slots=True)
class Sum:
    """What all parts came to."""

    total: int = 0
    duplicates: int = 0
    there: int = 0
    rendered: int = 0
    failed: int = 0
    errors: list[dict[str, str]] = field(default_factory=list)

    def add(self, warm_up: WarmUp) -> None:
        """Count one part."""
        for name in ("total", "duplicates", "there", "rendered", "failed"):
            setattr(self, name, getattr(self, name) + getattr(warm_up, name))
        self.errors += [dict(zip(("prompt", "code", "message"), each, strict=True)) for each in warm_up.errors]


def warm(file: Path, *, url: str | None, as_json: bool) -> bool:
    """Warm what `file` stands for and print what it came to; return whether every video is there now.

    Ctrl-C ends what runs on the server. Raises InvalidRequest for the file, and what the client raises.
    """
    read = read_templates(file)
    combinations = read.templates.combinations
    whole, began = Sum(), time.monotonic()
    with Encore(url) as encore, bars() as shown:
        for part in parts(read.templates):
            whole.add(_warmed(encore, read, part, whole, shown))
            shown.show("warm-up", whole.total + whole.duplicates, combinations)
    seconds = time.monotonic() - began
    if as_json:
        figures = {name: getattr(whole, name) for name in ("total", "duplicates", "there", "rendered", "failed")}
        typer.echo(json.dumps(figures | {"errors": whole.errors, "seconds": round(seconds, 3)}))
    else:
        typer.echo("\n".join(_told(whole, seconds)))
    return whole.failed == 0


def estimate(file: Path, *, price: float | None, url: str | None, as_json: bool) -> None:
    """Print what is there of what `file` stands for, and what rendering the rest takes; raises as `warm` does."""
    read = read_templates(file)
    combinations = read.templates.combinations
    missing: dict[int, None] = {}  # the first eight bytes of each key: a million of them must fit in memory
    there = unknown = 0
    seconds: float | None = 0.0
    with Encore(url) as encore, bars() as shown:
        done = 0
        for part in parts(read.templates):
            found = _asked(read, part, partial(encore.warm_estimate, part.templates))
            before = len(missing)
            missing.update(dict.fromkeys(int(key[:16], 16) for key in found.missing_keys))
            there, unknown, done = there + found.there, unknown + found.unknown, done + part.items
            if found.render_seconds is None or seconds is None:
                seconds = None
            elif found.missing:
                seconds += found.render_seconds * (len(missing) - before) / found.missing
            shown.show("looked for", done, combinations)
    report = {
        "combinations": combinations,
        "there": there,
        "missing": len(missing),
        "unknown": unknown,
        "seconds_per_render": seconds / len(missing) if seconds is not None and missing else None,
        "gpu_hours": None if seconds is None else seconds / 3600,
        "price": price,
        "cost": None if seconds is None or price is None else seconds / 3600 * price,
    }
    typer.echo(json.dumps(report) if as_json else "\n".join(_estimated(report)))


def parts(templates: Templates) -> Iterator[Part]:
    """Yield the items in calls of at most PART_ITEMS and about PART_BYTES, equal fields said once."""
    part, size = Part(), 0
    for (number, _), items in itertools.groupby(templates.items(), key=_alike):
        prompts: list[str] = []
        for item in items:
            if not prompts:
                part.templates.append(_fixed(item) | {"prompt": "{prompt}", "variables": {"prompt": prompts}})
                part.numbers.append(number)
            prompts.append(item.request.prompt)
            size += len(item.request.prompt.encode()) + 4
            part.items += 1
            if part.items >= PART_ITEMS or size >= PART_BYTES:
                yield part
                part, size, prompts = Part(), 0, []
    if part.items:
        yield part


def _alike(item: Item) -> tuple[int, str | None]:
    return item.template, item.request.negative_prompt


def _fixed(item: Item) -> dict[str, Any]:
    fields = item.request.model_dump(mode="json", exclude_none=True, exclude={"prompt", "priority"})
    if "negative_prompt" in fields:
        fields["negative_prompt"] = fields["negative_prompt"].replace("{", "{{").replace("}", "}}")
    return fields | {"ttl": item.ttl}


def _warmed(encore: Encore, read: TemplateFile, part: Part, before: Sum, shown: Bars) -> WarmUp:
    warm_up: WarmUp | None = None
    done = before.total + before.duplicates
    shown.show("warm-up", done, read.templates.combinations)
    try:
        with interrupt_postponed():
            warm_up = _asked(read, part, partial(encore.warm, part.templates))
        while not warm_up.is_final:
            shown.show("warm-up", done + warm_up.duplicates + warm_up.done, read.templates.combinations)
            time.sleep(POLL_INTERVAL)
            warm_up = patient(partial(encore.warm_up, warm_up.id), RETRY_SECONDS)
    except KeyboardInterrupt:
        if warm_up is None or warm_up.is_final:
            raise
        raise KeyboardInterrupt(_stopped(encore, warm_up)) from None
    if warm_up.status != "completed":
        why = f": {warm_up.errors[0][2]}" if warm_up.errors else "."
        raise EncoreError(f"Warm-up {warm_up.id} was {warm_up.status} by somebody else{why}")
    return warm_up


def _asked(read: TemplateFile, part: Part, call: Callable[[], T]) -> T:
    """Make a call; what the server refuses in a template is told with its place in the file."""
    try:
        return patient(call)
    except (Busy, Unavailable):
        raise
    except InvalidRequest as error:
        if error.param is None or not _PLACE.match(error.param):
            raise

        def of_file(place: re.Match[str]) -> str:
            return f"templates[{part.numbers[int(place[1])]}]"

        message, param = (_PLACE.sub(of_file, text, count=1) for text in (error.message, error.param))
        raise read.located(type(error)(message, param=param)) from None


def _stopped(encore: Encore, warm_up: WarmUp) -> str:
    try:
        ended = encore.cancel_warm_up(warm_up.id)
    except EncoreError as error:
        return f"Warm-up {warm_up.id} could not be stopped: {error.message}"
    return f"Stopped; of this part {ended.there + ended.rendered} of {ended.total} are there. The same command goes on."


def _told(whole: Sum, seconds: float) -> Iterator[str]:
    yield f"{whole.total:,} videos ({whole.duplicates:,} combinations mean what another one means)"
    counts = f"{whole.there:,} there already, {whole.rendered:,} rendered, {whole.failed:,} failed"
    yield f"{counts}, in {seconds:.1f} seconds"
    for error in whole.errors:
        yield f"failed: {error['prompt']!r}: {error['message']}"


def _estimated(report: dict[str, Any]) -> Iterator[str]:
    yield f"{'combinations':<16}{report['combinations']:,}"
    yield f"{'there already':<16}{report['there']:,}"
    unknown = f" (of {report['unknown']:,} a tier could not be asked)" if report["unknown"] else ""
    yield f"{'to render':<16}{report['missing']:,}{unknown}"
    if report["gpu_hours"] is None:
        yield f"{'time':<16}not known: this server has measured no render yet"
        return
    if report["missing"]:
        yield f"{'one render':<16}{report['seconds_per_render']:.3g} s, as measured"
    yield f"{'time':<16}{report['gpu_hours']:.3g} GPU-hours"
    if report["cost"] is not None:
        yield f"{'cost':<16}${report['cost']:,.2f} at ${report['price']:g} per GPU-hour"
