"""`encore warm` against the real application over real tiers: what is rendered, told, resumed, and the price."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from serve_app.api.api import build_api
from serve_app.cli import warm as command
from serve_app.cli.warm import parts
from serve_app.errors import InvalidRequest, RenderFailed
from serve_app.schema.templates import parse_templates
from tests.serve_app.api.uvicorn_server import serving
from tests.serve_app.cli.test_generate import Start
from tests.serve_app.service.rig import SMALLEST, Rig

Encore = Callable[..., Result]
FILE = f"""\
- prompt: a {{color}} star for {{shop}}
  variables:
    color: [red, blue]
    shop: [Anna, Bert, anna]
  size: {SMALLEST}
- prompt: a plain heart
  num_inference_steps: 2
"""


@dataclass
class Served:
    """A whole router on a thread of its own, and the loop it lives on."""

    rig: Rig
    loop: asyncio.AbstractEventLoop

    def allow(self, steps: int = 1000) -> None:
        self.loop.call_soon_threadsafe(self.rig.renderer.allow, steps)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    ready = threading.Event()
    made: list[tuple[Served, str, asyncio.Event]] = []

    async def run() -> None:
        rig, stop = Rig(tmp_path / "l3"), asyncio.Event()
        rig.clock = time.time  # type: ignore[assignment]
        async with serving(build_api(rig.service(), max_body_bytes=1 << 20)) as address:
            made.append((Served(rig, asyncio.get_running_loop()), address, stop))
            ready.set()
            await stop.wait()
        await rig.aclose()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert ready.wait(20)
    served, address, stop = made[0]
    monkeypatch.setenv("ENCORE_URL", address)
    monkeypatch.setattr(command, "POLL_INTERVAL", 0.01)
    yield served
    served.loop.call_soon_threadsafe(stop.set)
    thread.join()


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "templates.yaml").write_text(FILE)
    return str(tmp_path / "templates.yaml")


def test_a_file_is_warmed_and_again_it_is_all_there(encore: Encore, server: Served, file: str) -> None:
    """Each meaning is rendered once, the report counts them, and a second run finds them."""
    first = encore("warm", file)
    assert (first.exit_code, len(server.rig.renderer.asked)) == (0, 5)
    assert "5 videos (2 combinations mean what another one means)" in first.stdout
    assert "0 there already, 5 rendered, 0 failed" in first.stdout
    assert "warm-up: 7 of 7" in first.stderr
    again = json.loads(encore("warm", file, "--json").stdout)
    assert again.pop("seconds") >= 0
    assert again == {"total": 5, "duplicates": 2, "there": 5, "rendered": 0, "failed": 0, "errors": []}
    assert len(server.rig.renderer.asked) == 5


def test_parts_add_up(encore: Encore, server: Served, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of more than one part is warmed part by part; what an earlier part made is there in a later one."""
    monkeypatch.setattr(command, "PART_ITEMS", 2)
    told = json.loads(encore("warm", file, "--json").stdout)
    assert (told["rendered"], told["failed"], told["total"] + told["duplicates"]) == (5, 0, 7)
    assert told["total"] == told["rendered"] + told["there"]


def test_a_dry_run_renders_nothing_and_tells_the_price(
    encore: Encore, server: Served, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there is counted over all parts, each missing meaning once; with renders measured there is a price."""
    told = encore("warm", file, "--dry-run").stdout
    assert "to render       5" in told
    assert "not known: this server has measured no render yet" in told
    server.rig.renderer.meta = {"render_seconds": 3.6, "encode_seconds": 0.0}
    (Path(file).parent / "one.yaml").write_text(FILE.replace("[red, blue]", "[red]").partition("- prompt: a plain")[0])
    encore("warm", str(Path(file).parent / "one.yaml"))
    assert len(server.rig.renderer.asked) == 2
    monkeypatch.setattr(command, "PART_ITEMS", 4)  # "blue, Bert" and "blue, anna" are in other parts than "blue, Anna"
    told = json.loads(encore("warm", file, "--dry-run", "--price", "2.5", "--json").stdout)
    assert (told["combinations"], told["missing"], told["unknown"]) == (7, 3, 0)
    assert told["gpu_hours"] > 0
    assert told["cost"] == pytest.approx(2.5 * told["gpu_hours"])
    assert told["seconds_per_render"] == pytest.approx(3600 * told["gpu_hours"] / 3)
    shown = encore("warm", file, "--dry-run", "--price", "2.5").stdout
    assert "at $2.5 per GPU-hour" in shown
    assert len(server.rig.renderer.asked) == 2


def test_failures_end_in_status_1(encore: Encore, server: Served, file: str) -> None:
    """What could not be made is told by prompt and reason, and the exit status says so."""
    server.rig.renderer.failure = RenderFailed("no luck")
    result = encore("warm", file)
    assert result.exit_code == 1
    assert "5 failed" in result.stdout
    assert "failed: 'a plain heart': no luck" in result.stdout


def test_ctrl_c_stops_it_on_the_server_and_the_same_command_goes_on(
    encore: Encore, start: Start, server: Served, file: str
) -> None:
    """SIGINT ends with 130 and ends the warm-up on the server; what was made is there when it is run again."""
    server.rig.renderer.hold()
    server.allow(2 * server.rig.renderer.total)
    process = start("warm", file)
    until(lambda: len(server.rig.renderer.asked) >= 5)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Stopped; of this part " in told
    until(lambda: not next(iter(server.rig.peers.services)).warming.stats()["running"])
    server.allow()
    again = json.loads(encore("warm", file, "--json").stdout)
    assert (again["there"] + again["rendered"], again["failed"]) == (5, 0)


def test_what_the_server_refuses_is_told_with_the_files_line(encore: Encore, server: Served, file: str) -> None:
    """A value off the model's grid is found by the server, and told with the line that has it."""
    Path(file).write_text(FILE.replace("num_inference_steps: 2", "num_inference_steps: 2000"))
    result = encore("warm", file)
    assert result.exit_code == 1
    assert "templates.yaml, line 7: templates[1]: 'num_inference_steps' 2000 is not allowed" in result.stderr
    assert not server.rig.renderer.asked


def test_the_price_is_for_dry_runs(encore: Encore, file: str) -> None:
    """An option that would change nothing is a wrong command line."""
    assert encore("warm", file, "--price", "2").exit_code == 2


def test_parts_stand_for_the_same_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the parts' bounds, together they mean the file's requests, braces and all, in order."""
    wanted: list[dict[str, Any]] = [
        {"prompt": "{{a}} {x}", "variables": {"x": ["1{", "2}", "{y}"]}, "seed": 3, "ttl": 60},
        {"prompt": "{x}", "negative_prompt": "no {{{x}}}", "variables": {"x": ["u", "v"]}, "size": "32x32"},
        {"prompt": "last"},
    ]
    whole = [(item.request, item.ttl) for item in parse_templates(wanted).items()]
    for items, size in ((1, 10_000), (2, 10_000), (100, 12), (100, 10_000)):
        monkeypatch.setattr(command, "PART_ITEMS", items)
        monkeypatch.setattr(command, "PART_BYTES", size)
        sent = list(parts(parse_templates(wanted)))
        assert all(part.items <= items for part in sent)
        again = [item for part in sent for item in parse_templates(json.loads(json.dumps(part.templates))).items()]
        assert [(item.request, item.ttl) for item in again] == whole
        assert [number for part in sent for number in part.numbers] == sorted(
            number for part in sent for number in part.numbers
        )


def test_a_million_items_are_sent_as_they_are_made() -> None:
    """The first part of a file that stands for a million videos is there without the others."""
    values = [str(number) for number in range(1000)]
    part = next(parts(parse_templates([{"prompt": "{a} {b}", "variables": {"a": values, "b": values}}])))
    assert part.items == command.PART_ITEMS
    (template,) = part.templates
    assert len(template["variables"]["prompt"]) == part.items


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_hundred_million_combinations_are_refused_at_once(tmp_path: Path) -> None:
    """A file that stands for more than anybody could wait for is refused when it is read; nothing is sent or polled."""
    file = tmp_path / "many.yaml"
    values = [str(number) for number in range(100)]
    file.write_text(json.dumps([{"prompt": "{a}{b}{c}{d}", "variables": dict.fromkeys("abcd", values)}]))
    with pytest.raises(InvalidRequest, match="100,000,000 requests; at most 1,000,000"):
        command.warm(file, url="http://127.0.0.1:9", as_json=False)
