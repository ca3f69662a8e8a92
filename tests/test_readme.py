"""The README and docs/ are true: commands run, tables list what the code has, links lead somewhere."""

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

from serve_app.media import probe
from serve_app.schema import VideoRequest
from serve_app.settings import SECRETS, Settings
from tests.conftest import free_ports

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]


def blocks(language: str, page: str = README) -> list[str]:
    """Return the code blocks of one language in a page, by default the README."""
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def doc(name: str) -> str:
    """Return a page of docs/."""
    return (ROOT / "docs" / name).read_text()


def test_every_setting_is_listed() -> None:
    """The settings page has a row for each setting, with its default and its description, and is the written one."""
    for name, field in Settings.model_fields.items():
        default = "environment only" if name in SECRETS else f"`{field.default}`"
        assert f"| `{name}` | {default} | {field.description} |" in doc("settings.md")
    program = "import runpy; print(runpy.run_path('docs/settings.py')['page'](), end='')"
    written = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": "."},
    )
    assert written.stdout == doc("settings.md"), "run: python docs/settings.py"


def test_every_field_is_listed() -> None:
    """Each field of a request is named in the table of fields."""
    for name in VideoRequest.model_fields:
        assert f"`{name}`" in doc("api.md")


def test_the_readme_is_one_sitting() -> None:
    """The README has at most 200 lines, the map of the code at most 80."""
    assert len(README.splitlines()) <= 200
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) <= 80


def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ +(.+)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    """Every relative link of a page names a file of this repository, and its anchor a heading there."""
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name) if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("path", [ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_the_map_names_what_is_there(path: Path) -> None:
    """Every file and folder that the map names exists."""
    for name in re.findall(r"`([\w./]+(?:/|\.py|\.lua))`", path.read_text()):
        assert (
            (ROOT / name).exists()
            or (ROOT / "serve_app" / name).exists()
            or (ROOT / "deployments/launcher" / name).exists()
            or (ROOT / "deployments" / name).exists()
            or any((ROOT / "serve_app").glob(f"*/{name}"))
        ), name


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
    """The README's first request leaves a playable MP4."""
    assert shutil.which("curl")
    done = run(blocks("sh")[1], served, "sh", "-c")
    assert done.returncode == 0, done.stderr
    assert "x-encore-outcome: rendered" in done.stdout
    assert probe((Path(served["folder"]) / "out.mp4").read_bytes()).num_frames == 16


@pytest.mark.cluster
@pytest.mark.parametrize("number", [0, 1, 2], ids=["openai", "encore", "handle"])
def test_the_python_programs(served: dict[str, str], number: int) -> None:
    """The SDK's, the client's and the handle's programs run as they are printed."""
    done = run(blocks("python")[number], served, sys.executable, "-c")
    assert done.returncode == 0, done.stderr
    assert re.search("rendered|l1", done.stdout), done.stdout


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
    (Path(served["folder"]) / "templates.yaml").write_text(
        "\n".join(blocks("yaml", doc("cache.md"))[0].splitlines()) + "\n"
    )
    explained = run("encore explain --json 'a red circle moves left'", served, "sh", "-c")
    key = re.search(r'"video": *"([0-9a-f]{64})"', explained.stdout)
    assert key, explained.stderr
    for line in blocks("sh")[2].strip().splitlines():
        done = run(line.replace("KEY", key[1]), served, "sh", "-c")
        assert done.returncode == 0, (line, done.stderr)
