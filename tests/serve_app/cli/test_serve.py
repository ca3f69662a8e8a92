"""`encore serve` up to the exec: what the launcher would be given, and what is refused before."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from serve_app.cli.serve import default_cache_dir
from tests.serve_app.model.training.short_run import ShortRun

Encore = Callable[..., Result]
Launched = Callable[..., dict[str, Any]]


@pytest.fixture
def execs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Every exec that was tried; this process goes on living."""
    calls: list[list[str]] = []

    def execv(program: str, command: list[str]) -> None:
        assert program == command[0] == sys.executable
        calls.append(command)

    monkeypatch.setattr(os, "execv", execv)
    return calls


@pytest.fixture
def launched(encore: Encore, execs: list[list[str]]) -> Launched:
    """Run `encore serve` and return the launcher's argument."""

    def run(*arguments: str) -> dict[str, Any]:
        result = encore("serve", *arguments)
        assert result.exit_code == 0, result.output
        assert execs[-1][1:4] == ["-P", "-m", "deployments.launcher.launcher"]
        answer: dict[str, Any] = json.loads(execs[-1][4])
        return answer

    return run


def test_defaults(launched: Launched, monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Proves what a plain `encore serve` asks for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    assert launched() == {"cache_dir": str(place / "encore"), "port": None, "overrides": {}, "config": None}


def test_options_reach_the_launcher(launched: Launched, place: Path) -> None:
    """Proves that paths become absolute and settings get their types."""
    (place / "mine.yaml").write_text("applications: [{name: encore}]")
    words = ["--port", "8123", "--cache-dir", "here", "--model", "native/demo", "--config", "mine.yaml"]
    sets = ["--set", "max_queued=8", "--set", "linger_seconds=0.5", "--set", "redis_url=none"]
    assert launched(*words, *sets) == {
        "cache_dir": str(place / "here"),
        "port": 8123,
        "overrides": {"model": "native/demo", "max_queued": 8, "linger_seconds": 0.5, "redis_url": None},
        "config": str(place / "mine.yaml"),
    }


def test_the_environment_names_the_cache_folder(launched: Launched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that ENCORE_CACHE_DIR is used, that ~ means home, and that the option wins."""
    monkeypatch.setenv("ENCORE_CACHE_DIR", "~/videos")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert launched()["cache_dir"] == "/home/somebody/videos"
    assert launched("--cache-dir", "/other")["cache_dir"] == "/other"


@pytest.mark.parametrize("base", ["", "relative/path"])
def test_a_relative_xdg_folder_is_ignored(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that the XDG specification is followed: such a value is invalid."""
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_cache_dir({"XDG_CACHE_HOME": base}) == Path("/home/somebody/.cache/encore")
    assert default_cache_dir({}) == Path("/home/somebody/.cache/encore")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--set max_queue=8", "did you mean max_queued"),
        ("--set colour=red", "there are model, device"),
        ("--set max_queued=many", "--set max_queued"),
        ("--set max_queued=none", "--set max_queued"),
        ("--set max_queued", "NAME=VALUE"),
        ("--set secret=abc", "ENCORE_SECRET"),
        ("--model native/demo --set model=encore-demo", "contradict"),
        ("--port 0", "--port"),
        ("--cache-dir ~nobody-here/x", "--cache-dir"),
        ("--config missing.yaml", "missing.yaml"),
        ("--config text", "applications"),
        ("--config binary", "cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    encore: Encore, execs: list[list[str]], place: Path, words: str, told: str
) -> None:
    """Proves that a mistake in the command line is a usage error that names it, not a server that fails later."""
    (place / "text").write_text("just text")
    (place / "binary").write_bytes(b"\xff\xfe\x00")
    result = encore("serve", *words.split())
    assert (result.exit_code, execs) == (2, [])
    assert told in result.stderr
    assert "abc" not in result.stderr  # a secret is not repeated


def test_an_unknown_model_is_refused_before_ray_starts(encore: Encore, execs: list[list[str]]) -> None:
    """Proves that a wrong model costs no half minute of starting."""
    result = encore("serve", "--model", "nope")
    assert (result.exit_code, execs) == (1, [])
    assert "known: native/demo" in result.stderr


def test_a_negative_prompt_is_read_before_ray_starts(
    encore: Encore, launched: Launched, execs: list[list[str]]
) -> None:
    """Proves that a deployment's negative prompt is as its prompts are: the model must be able to read it."""
    assert launched("--set", "negative_prompt=a star")["overrides"] == {"negative_prompt": "a star"}
    result = encore("serve", "--set", f"negative_prompt={'star ' * 500}")
    assert (result.exit_code, len(execs)) == (1, 1)
    assert "'negative_prompt' has 2500 characters; at most 2000 are allowed" in result.stderr


def test_a_wrong_environment_is_named(encore: Encore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that the variable at fault is told, not an option nobody gave."""
    monkeypatch.setenv("ENCORE_MAX_QUEUED", "many")
    result = encore("serve")
    assert result.exit_code == 2
    assert "ENCORE_MAX_QUEUED" in result.stderr


def test_a_trained_folder_is_served_by_its_absolute_path(launched: Launched, short_run: ShortRun, place: Path) -> None:
    """A relative path means something here and not where replicas run, so it becomes absolute."""
    (place / "mine").symlink_to(short_run.folder)
    assert launched("--model", "./mine")["overrides"] == {"model": str(place / "mine")}
    assert launched("--set", "model=./mine/checkpoint")["overrides"] == {"model": str(place / "mine" / "checkpoint")}


def test_a_wan_checkpoint_is_checked_and_made_absolute(
    launched: Launched, encore: Encore, wan_folder: Callable[..., Path], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proves that a folder of weights is read before the launcher starts, and that replicas can find it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    (place / "weights").symlink_to(wan_folder())
    words = ("--model", "wan2.2-t2v-5b", "--set", "checkpoint=./weights", "--set", "dtype=float32")
    expected = {"model": "wan2.2-t2v-5b", "checkpoint": str(place / "weights"), "dtype": "float32"}
    assert launched(*words)["overrides"] == expected
    (place / "empty").mkdir()
    refused = encore("serve", "--model", "wan2.2-t2v-5b", "--set", "checkpoint=./empty")
    assert refused.exit_code == 1
    assert "model_index.json cannot be read" in refused.stderr
    alone = encore("serve", "--set", "checkpoint=./weights")
    assert alone.exit_code == 1
    assert "not for native/demo" in alone.stderr
    traded = ("--set", "quantization=int8", "--set", "vae_tiling=true")
    assert launched(*words, *traded)["overrides"] == expected | {"quantization": "int8", "vae_tiling": True}
    unknown = encore("serve", "--set", "quantization=int4")
    assert unknown.exit_code == 2
    assert "quantization" in unknown.stderr
    alone = encore("serve", "--set", "torch_compile=true")
    assert alone.exit_code == 1
    assert "torch_compile" in alone.stderr
