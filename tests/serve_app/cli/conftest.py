"""The command line in this process and as a program of its own, against a real small HTTP server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from serve_app.cli.cli import app
from tests.serve_app.client.wire_server import World, serving

# A CI that runs in the background ignores SIGINT, and children inherit that.
OBEDIENT = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
PROGRAM = [sys.executable, "-c", f"{OBEDIENT}; from serve_app.cli import main; main()"]


@pytest.fixture(scope="session")
def served() -> Iterator[tuple[World, str]]:
    world = World()
    with serving(world) as address:
        yield world, address


@pytest.fixture
def world(served: tuple[World, str]) -> World:
    served[0].reset()
    return served[0]


@pytest.fixture(autouse=True)
def place(served: tuple[World, str], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with the server's address and nothing else of Encore in the environment."""
    for name in [name for name in os.environ if name.startswith("ENCORE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ENCORE_URL", served[1])
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def encore() -> Callable[..., Result]:
    """Run a command line in this process; an exception that escapes is raised."""

    def run(*arguments: str, stdin: str | bytes | None = None, **more: Any) -> Result:
        result = CliRunner().invoke(app, arguments, input=stdin, **more)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a command line as a process with pipes; whatever still runs after the test is killed."""
    processes: list[subprocess.Popen[bytes]] = []

    def run(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | options
        processes.append(subprocess.Popen([*PROGRAM, *arguments], **streams))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.communicate()
