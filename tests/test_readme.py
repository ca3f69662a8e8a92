"""The README and docs/ are true: their commands run, their tables list what the code has.

Links, names and the page of settings are in tests/docs.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.core import Outcome
from serve_app.errors import InvalidRequest, NotCached, NotFound, RenderFailed, Unavailable, Unprocessable
from serve_app.media import probe
from serve_app.schema import VideoRequest
from tests.conftest import free_ports

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str, page: str = README) -> list[str]:
    """Return the code blocks of one language in a page, by default the README."""
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def doc(name: str) -> str:
    """Return a page of docs/."""
    return (ROOT / "docs" / name).read_text()


def test_every_field_is_listed() -> None:
    """Each field of a request is named in the table of fields."""
    for name in VideoRequest.model_fields:
        assert f"`{name}`" in doc("api.md")


def test_every_error_is_listed() -> None:
    """Each error that a client can get is in the table of errors, with its status."""
    kinds = [Unavailable, NotCached, RenderFailed, *InvalidRequest.__subclasses__(), InvalidRequest]
    for kind in (*kinds, *Unprocessable.__subclasses__(), *NotFound.__subclasses__(), *RenderFailed.__subclasses__()):
        assert re.search(rf"^\| {kind.status} \| .*`{kind.code}`", doc("api.md"), re.MULTILINE), kind


def test_every_outcome_is_listed() -> None:
    """The README's table has the outcomes of the code, in its order, and no others."""
    (rows,) = re.findall(r"^\| outcome \|[^\n]*\n((?:\|[^\n]*\n)+)", README, re.MULTILINE)
    words = [word for row in rows.splitlines() for word in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert words == [outcome.value for outcome in Outcome]


def test_make_test_is_the_test_command() -> None:
    """`make test` and `make lint` exist and run what they should."""
    for target, command in (("test", "-m pytest"), ("lint", "lint-imports")):
        shown = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert command in shown


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Run the README's `make serve` in a fresh clone, with the packages of this environment; yield how to reach it."""
    assert "make serve" in blocks("sh")[0]
    clone = tmp_path_factory.mktemp("clone") / "encore"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    (port,) = free_ports(1)
    log = clone.parent / "serve.log"
    command = ["make", "-o", f"{sys.prefix}/.installed", "serve", f"VENV={sys.prefix}"]
    command += [f"ARGS=--port {port} --cache-dir {clone.parent / 'cache'}"]
    with log.open("wb") as out:
        server = subprocess.Popen(command, cwd=clone, stdout=out, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 300
        while "Encore is ready." not in log.read_text():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield {"port": str(port), "folder": str(clone.parent)}
    finally:
        server.send_signal(signal.SIGTERM)
        ended = server.wait(60)
    assert ended != 0 or "Stopping" in log.read_text()


def run(script: str, served: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    """Run one block of the README as it stands, but for the port."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "ENCORE_URL": f"http://127.0.0.1:{served['port']}",
        "ENCORE_CACHE_DIR": f"{served['folder']}/cache",
        "PYTHONWARNINGS": "ignore::DeprecationWarning",
    }
    return subprocess.run(
        [*command, script.replace(":8000", f":{served['port']}")],
        cwd=served["folder"], env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.cluster
def test_the_curl_command(served: dict[str, str]) -> None:
    """The README's first request leaves a playable MP4; sent again it comes out of memory."""
    assert shutil.which("curl")
    done, again = (run(blocks("sh")[1], served, "sh", "-c") for _ in range(2))
    assert done.returncode == 0, done.stderr
    assert "x-encore-outcome: rendered" in done.stdout
    assert "x-encore-outcome: l1" in again.stdout
    assert probe((Path(served["folder"]) / "out.mp4").read_bytes()).num_frames == 16


@pytest.mark.cluster
@pytest.mark.parametrize("number", [0, 1, 2], ids=["openai", "encore", "handle"])
def test_the_python_programs(served: dict[str, str], number: int) -> None:
    """The SDK's, the client's and the handle's programs run as they are printed."""
    done = run(blocks("python")[number], served, sys.executable, "-c")
    assert done.returncode == 0, done.stderr
    assert re.search("rendered|l1", done.stdout), done.stdout


@pytest.mark.cluster
@pytest.mark.parametrize(("number", "said"), [(0, "completed"), (1, "rendered|l1")], ids=["client", "handle"])
def test_the_python_programs_of_the_api(served: dict[str, str], number: int, said: str) -> None:
    """The programs on the page of the API run as they are printed."""
    done = run(blocks("python", doc("api.md"))[number], served, sys.executable, "-c")
    assert done.returncode == 0, done.stderr
    assert re.search(said, done.stdout), done.stdout


@pytest.mark.cluster
def test_the_requests_of_the_api(served: dict[str, str]) -> None:
    """The page of the API begins with a request for a video of 2 s, and one for the models."""
    video, models = (run(block, served, "sh", "-c") for block in blocks("sh", doc("api.md"))[:2])
    assert "x-encore-seed: 7" in video.stdout
    assert probe((Path(served["folder"]) / "star.mp4").read_bytes()).seconds == pytest.approx(2)
    assert '"native/demo"' in models.stdout


@pytest.mark.cluster
def test_a_job_by_hand(served: dict[str, str]) -> None:
    """The page of jobs begins with a job, its events and its file."""
    done = run(blocks("sh", doc("jobs.md"))[0], served, "sh", "-c")
    assert done.returncode == 0, done.stderr
    assert "event: completed" in done.stdout
    assert probe((Path(served["folder"]) / "job.mp4").read_bytes()).num_frames == 16


@pytest.mark.cluster
def test_ray_s_tools(served: dict[str, str]) -> None:
    """With the variables that the server prints, Ray's own `serve status` tells of the application."""
    log = (Path(served["folder"]) / "serve.log").read_text()
    (line,) = re.findall(r"^  Ray's tools +(export .*; serve status)$", log, re.MULTILINE)
    done = run(line, served, "sh", "-c")
    assert done.returncode == 0, done.stderr
    assert "status: RUNNING" in done.stdout


@pytest.mark.cluster
def test_the_encore_commands(served: dict[str, str]) -> None:
    """Every `encore` line runs; the key that `invalidate` wants is the one that `explain` told."""
    (Path(served["folder"]) / "prompts.txt").write_text("a cat\na dog\n")
    (Path(served["folder"]) / "templates.yaml").write_text(blocks("yaml", doc("cache.md"))[0])
    explained = run("encore explain --json 'a red circle moves left'", served, "sh", "-c")
    key = re.search(r'"video": *"([0-9a-f]{64})"', explained.stdout)
    assert key, explained.stderr
    commands = [blocks("sh")[2], blocks("sh", doc("api.md"))[2], blocks("sh", doc("operations.md"))[0]]
    for line in "".join(commands).splitlines():
        done = run(line.replace("KEY", key[1]), served, "sh", "-c")
        assert done.returncode == 0, (line, done.stderr)
