"""What all commands have in common: errors in one line, exit statuses, quick starts."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from starlette.responses import HTMLResponse
from typer.testing import Result

from serve_app import __version__
from serve_app.errors import Busy
from tests.serve_app.client.wire_server import KEY, World

Encore = Callable[..., Result]
ASKING = [["generate", "a red circle", "-o", "out.mp4"], ["stats"], ["models"], ["invalidate", KEY]]


def test_version(encore: Encore) -> None:
    """Proves that the version is the package's."""
    assert encore("--version").stdout == f"encore {__version__}\n"


@pytest.mark.parametrize("command", ASKING, ids=lambda command: command[0])
def test_no_server_is_one_line_that_helps(encore: Encore, command: list[str]) -> None:
    """Proves that a refused connection is told in one line, on standard error, with exit status 1."""
    result = encore(*command, "--url", "http://127.0.0.1:1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("encore: No Encore server answers at http://127.0.0.1:1.")
    assert "encore serve" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [*ASKING, ["explain", "x"]], ids=lambda command: command[0])
def test_an_impossible_address_is_one_line(encore: Encore, command: list[str]) -> None:
    """Proves that a mistyped address is named, by every command."""
    result = encore(*command, "--url", "nonsense")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("encore: 'nonsense' is not the address of a server")


@pytest.mark.parametrize("command", ASKING, ids=lambda command: command[0])
def test_another_server_is_one_line(encore: Encore, world: World, command: list[str]) -> None:
    """Proves that pages of some other program do not end in a trace, however many lines they have."""
    world.failure = HTMLResponse("<html>\n<h1>It works!</h1>\n</html>", 404)
    result = encore(*command)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "answered 404: <html> <h1>It works!" in result.stderr


def test_what_the_server_says_is_passed_on(encore: Encore, world: World) -> None:
    """Proves that a refusal reaches the person in the server's words."""
    world.failure = Busy("Too many renders are queued; try again in 7 s.", retry_after=7)
    assert encore("generate", "x").stderr == "encore: Too many renders are queued; try again in 7 s.\n"


@pytest.mark.parametrize("wrong", [["--fps", "many"], ["--seed", "first"], ["--colour", "red"], []])
def test_a_wrong_command_line_is_exit_2(encore: Encore, world: World, wrong: list[str]) -> None:
    """Proves that what typer refuses never reaches a server and has the status of a usage error."""
    result = encore("generate", *(["a red circle", *wrong] if wrong else []))
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert world.requests == []


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    """Proves that help needs neither HTTP, pydantic nor numpy, and comes in well under a second."""
    heavy = {"httpx", "pydantic", "numpy", "yaml", "redis", "torch", "ray", "transformers"}
    code = f"""
import sys
from serve_app.cli import main
sys.argv = ["encore", "--help"]
try:
    main()
finally:
    print("LOADED", sorted({heavy!r} & set(sys.modules)))
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - began < 3  # measured 0.25 s; a busy machine is not a failure
    assert "generate" in done.stdout
    assert done.stdout.endswith("LOADED []\n")
