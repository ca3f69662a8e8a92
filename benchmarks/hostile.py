"""How long does one hostile request hold a router up, and how much memory does it take?

    python benchmarks/hostile.py [--quick] [--json PATH] [--plot PATH]

The router's real application over real parts (folder, tiers, flights, jobs; no Ray, no model), in this process, is
given requests made to hurt (`hostile_cases`), one after the other, in the pieces in which a server would pass them on.
Measured for each kind:

- the longest hold of the event loop: the processor time of the loop's thread in one callback. Time on the clock would
  count what else the machine does, and other threads of this process; the loop's own work is what this is about. The
  clock's longest gap is printed beside it;
- the largest growth: the peak of the resident set while a request is answered (the kernel's VmHWM, set back before
  each) less what it was before, without the body itself as the client holds it;
- answers of 500 and more, of which 503 and 429 are not counted: they say when to come back.

Images that are as large as they may be are played too; their memory is what `max_image_pixels` documents.
With --quick every fifth case of a kind is played.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from form import Goal, Result, Row, main
from hostile_cases import MIB, Case, all_cases, largest_images
from outage_line import Alone, Line

from serve_app.api.api import build_api
from serve_app.settings import Settings
from serve_app.telemetry import Telemetry
from serve_app.wiring import model, router

HOLD_SECONDS, GROWTH, IMAGE_GROWTH = 0.05, 64 * MIB, 650 * MIB
_PIECE = 65_536
_PATIENCE = 120.0
_FINE = (429, 503)


class TakesImages:
    """A family whose card says that it takes an image, so that images are read."""

    def __init__(self, family: Any) -> None:
        self._family = family
        self.card = replace(family.card, image_encoder_fingerprint="none")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)


class Loop:
    """The longest callback of the running loop since `reset`: processor time, and time on the clock."""

    def __init__(self) -> None:
        self.held = self.gap = 0.0

    def reset(self) -> None:
        self.held = self.gap = 0.0

    @contextmanager
    def watched(self) -> Any:
        run, loop = asyncio.events.Handle._run, self

        def timed(handle: Any) -> None:
            held, gap = time.thread_time(), time.perf_counter()
            run(handle)
            loop.held = max(loop.held, time.thread_time() - held)
            loop.gap = max(loop.gap, time.perf_counter() - gap)

        with patch.object(asyncio.events.Handle, "_run", timed):
            yield self


@dataclass(slots=True)
class Kind:
    """What the cases of one kind came to."""

    cases: int = 0
    held: float = 0.0
    gap: float = 0.0
    growth: int = 0
    seconds: float = 0.0
    failures: int = 0
    statuses: str = ""

    def add(self, status: int, loop: Loop, growth: int, seconds: float) -> None:
        self.cases += 1
        self.held, self.gap = max(self.held, loop.held), max(self.gap, loop.gap)
        self.growth, self.seconds = max(self.growth, growth), max(self.seconds, seconds)
        self.failures += status >= 500 and status not in _FINE
        known = set(self.statuses.split())
        self.statuses = " ".join(sorted({*known, str(status)}))

    def row(self, name: str) -> Row:
        return {
            "kind": name, "answers": self.statuses, "cases": self.cases, "hold ms": 1000 * self.held,
            "gap ms": 1000 * self.gap, "growth MB": self.growth / MIB, "longest s": self.seconds, "5xx": self.failures,
        }  # fmt: skip


async def asked(app: Any, case: Case, body: bytes) -> int:
    """Send a request to the application as a server would; return the status of its answer, 0 for none in time."""
    pieces = [body[start : start + _PIECE] for start in range(0, len(body), _PIECE)] or [b""]
    given = iter(range(len(pieces)))
    answered: list[int] = []
    over = asyncio.Event()
    headers = {"host": "127.0.0.1", **({"content-type": case.content_type} if case.content_type else {})}
    headers |= {"content-length": str(len(body))} if body else {}
    headers |= {name.lower(): value for name, value in case.headers.items()}

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        number = next(given, None)
        if number is None:
            await over.wait()
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": pieces[number], "more_body": number + 1 < len(pieces)}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answered.append(message["status"])
        elif not message.get("more_body"):
            over.set()

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": case.method, "scheme": "http",
        "path": case.path, "raw_path": case.path.encode(), "query_string": case.query, "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip
    try:
        async with asyncio.timeout(_PATIENCE):
            await app(scope, receive, send)
    except TimeoutError:
        return answered[0] if answered else 599
    return answered[0] if answered else 599


def memory(field: str) -> int:
    """Return a line of /proc/self/status in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{field}:")[1].split()[0])


def memory_from_now() -> int:
    """Return the resident set, from which on VmHWM counts (proc(5))."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


async def played(app: Any, cases: Iterable[Case], loop: Loop, kinds: dict[str, Kind]) -> None:
    """Play cases one after the other and count them under their kinds."""
    for number, case in enumerate(cases):
        body = case.make()
        if number % 100 == 0:
            gc.collect()
        before = memory_from_now()
        await asyncio.sleep(0)  # what this program did so far is another callback's
        loop.reset()
        began = time.perf_counter()
        status = await asked(app, case, body)
        seconds = time.perf_counter() - began
        growth = memory("VmHWM") - before
        await asyncio.sleep(0)  # a callback is counted when it ends
        kinds.setdefault(case.kind, Kind()).add(status, loop, growth, seconds)
        if os.environ.get("HOSTILE_VERBOSE"):
            held = f"{1000 * loop.held:.1f} ms"
            print(case.kind, case.path[:40], status, held, growth // MIB, "MB", flush=True)


async def _measure(quick: bool, folder: Path) -> Result:
    settings = Settings(l3_url=f"file://{folder}", l2_ttl_seconds=3600)
    telemetry = Telemetry(lambda event: None)
    line = Line(settings, telemetry)
    opened = model.open_family
    with patch.object(model, "open_family", lambda given: TakesImages(opened(given))):
        service = router.open_service(settings, line, Alone(), telemetry, line.router)
    app = build_api(service, max_body_bytes=settings.max_body_bytes, max_image_bytes=settings.max_image_bytes)
    every = 5 if quick else 1
    kinds: dict[str, Kind] = {}
    images: dict[str, Kind] = {}
    try:
        with Loop().watched() as loop:
            await asked(app, Case("", "GET", "/healthz", content_type=None), b"")
            await played(app, list(largest_images())[:1], loop, {})  # what is loaded once is no growth
            await played(app, list(all_cases())[::every], loop, kinds)
            await played(app, list(largest_images())[::every], loop, images)
    finally:
        await service.aclose()
        await line.aclose()
    everything = [*kinds.values(), *images.values()]
    goals = [
        Goal.at_most("longest hold of the loop, ms", 1000 * max(each.held for each in everything), 1000 * HOLD_SECONDS),
        Goal.at_most("largest growth, MB", max(each.growth for each in kinds.values()) / MIB, GROWTH / MIB),
        Goal.at_most("growth with the largest images, MB", max(each.growth for each in images.values()) / MIB, 650),
        Goal.exactly("answers of 500 and more", sum(each.failures for each in everything), 0),
    ]
    rows = [each.row(name) for name, each in sorted((kinds | images).items(), key=lambda pair: -pair[1].held)]
    return Result(rows, goals, {"cases": sum(each.cases for each in everything)})


def measure(quick: bool) -> Result:
    """Play all cases."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_measure(quick, Path(folder)))


def draw(axes: Any, result: Result) -> None:
    """Draw the longest hold of each kind."""
    rows = result.rows[:20]
    axes.barh([str(row["kind"]) for row in rows], [float(row["hold ms"]) for row in rows])
    axes.axvline(1000 * HOLD_SECONDS, color="black")
    axes.set_xlabel("longest hold of the event loop, ms")


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", measure, draw))
