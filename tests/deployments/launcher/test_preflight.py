"""What cannot work is told by its setting's name before Ray starts; the user's environment stays outside."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests.utils

from deployments.app import build
from deployments.launcher.host.environment import choose_ports, environment, haproxy_options
from deployments.launcher.host.folder import CacheFolder
from deployments.launcher.host.ports import FreePorts
from deployments.launcher.host.user_environment import LEFT_OUT, inherited, without_proxy
from deployments.launcher.preflight import check
from deployments.tracing import traces_url
from serve_app.errors import EncoreError, InvalidRequest
from serve_app.settings import Settings

MARK = "hunter2"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"redis_url": "http://cache"}, "'redis_url': it begins with http://"),
        ({"redis_url": "redis://cache?no_such_option=1"}, "'redis_url'.*no_such_option"),
        ({"redis_url": "redis+cluster://cache?no_such_option=1"}, "'redis_url'.*no_such_option"),
        ({"redis_url": "redis://cache?socket_timeout=soon"}, "'redis_url'.*socket_timeout"),
        ({"l3_url": "ftp://cache"}, "'l3_url': it begins with ftp://"),
        ({"l3_url": "file:///proc/nowhere"}, "'l3_url': /proc/nowhere cannot be used"),
        ({"synonyms_file": "/nope"}, "'synonyms_file'.*No such file"),
        ({"vocabulary_file": "/nope"}, "'vocabulary_file'.*No such file"),
        ({"model": "nope"}, "no model 'nope'"),
        ({"revision": "main"}, "'revision' is for checkpoints from the Hugging Face Hub"),
        ({"max_queued": "many"}, "'max_queued'"),
        ({"max_queud": 8}, "did you mean max_queued"),
        ({"redis_url": f"redis://:{MARK}@cache"}, "ENCORE_REDIS_URL or ENCORE_REDIS_URL_FILE"),
    ],
)
def test_what_cannot_work_is_named(given: dict[str, Any], told: str) -> None:
    """Each is one EncoreError with the setting's name, and without a secret."""
    with pytest.raises(EncoreError, match=told) as caught:
        check(given, print)
    assert MARK not in caught.value.message


@pytest.mark.parametrize("name", ["device", "text_device"])
def test_a_missing_gpu_is_told_by_the_launcher_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The launcher refuses cuda where there is none; `build` does not, as a cluster's head has no GPU either."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InvalidRequest, match=f"Setting '{name}' is cuda, but torch finds no GPU here"):
        check({name: "cuda"}, print)
    build(Settings(**{name: "cuda"}))  # type: ignore[arg-type]


def test_build_refuses_what_works_nowhere() -> None:
    """`serve deploy` is told as soon as it builds, not by a replica that does not start."""
    for given in ({"synonyms_file": "/nope"}, {"redis_url": "redis://cache?no_such_option=1"}):
        with pytest.raises(InvalidRequest, match=f"'{next(iter(given))}'"):
            build(Settings(**given))  # type: ignore[arg-type]


def test_a_misspelt_variable_is_told_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no effect, so somebody should read that."""
    monkeypatch.setenv("ENCORE_MAX_QUEUD", "8")
    told: list[str] = []
    check({}, told.append)
    assert "Warning: ENCORE_MAX_QUEUD is no setting and has no effect; did you mean ENCORE_MAX_QUEUED?" in told


@pytest.mark.parametrize("proxies", [{}, {"no_proxy": "corp.example"}, {"NO_PROXY": "a.example, b.example"}])
def test_internal_calls_ask_no_proxy(monkeypatch: pytest.MonkeyPatch, proxies: dict[str, str]) -> None:
    """With any proxy in the environment, each HTTP client reaches loopback directly and the world through the proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://proxy.example:3128")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in without_proxy(proxies).items():
        monkeypatch.setenv(name, value)
    for host in ("127.0.0.1", "localhost"):
        assert urllib.request.proxy_bypass_environment(f"{host}:8265")
        assert requests.utils.should_bypass_proxies(f"http://{host}:8265", no_proxy=None)
        with httpx.Client() as client:
            mounted: Any = client._transport_for_url(httpx.URL(f"http://{host}:8265"))
            assert "Proxy" not in type(mounted._pool).__name__
    assert not urllib.request.proxy_bypass_environment("huggingface.co")
    for host in (each.strip() for value in proxies.values() for each in value.split(",")):
        assert urllib.request.proxy_bypass_environment(host)


def test_what_turns_ray_or_python_elsewhere_is_left_out(tmp_path: Path) -> None:
    """Another cluster's address, odd temporary folders and a missing home do not reach the server's processes."""
    told = dict.fromkeys(LEFT_OUT, "odd") | {
        "TMPDIR": str(tmp_path / ("long" * 20)),
        "HTTP_PROXY": "http://p",
        "X": "1",
    }
    kept = inherited(told | {"HOME": "/nowhere"}, tmp_path, Path("/tmp/short"))
    assert LEFT_OUT.isdisjoint(kept)
    assert (kept["HOME"], kept["TMPDIR"], kept["X"], kept["HTTP_PROXY"]) == (
        str(tmp_path),
        "/tmp/short",
        "1",
        "http://p",
    )
    assert inherited({"HOME": str(tmp_path)}, Path("/x"), Path("/y"))["HOME"] == str(tmp_path)


def test_nothing_that_haproxy_reads_has_the_folder_s_name_in_it(tmp_path: Path) -> None:
    """HAProxy's configuration takes no blanks and Ray's template quotes none: what it names has a plain path."""
    folder, free = CacheFolder(tmp_path / "a blank %20 'quoted'"), FreePorts()
    try:
        told = environment(folder, choose_ports(18_000, free), haproxy_options("", Settings()), inherited={})
        paths = [value for name, value in told.items() if name.startswith("RAY_") and "/" in value]
        assert len(paths) >= 5
        assert not [path for path in paths if "blank" in path]
    finally:
        free.release()
        folder.release()


def test_spans_go_to_the_path_before_the_query() -> None:
    """A token in the query of an endpoint stays one."""
    assert traces_url("http://collector:4318?key=1") == "http://collector:4318/v1/traces?key=1"
    assert traces_url("http://collector/v1/traces?key=1") == "http://collector/v1/traces?key=1"


def test_a_server_starts_without_streams_and_home(tmp_path: Path) -> None:
    """With standard streams closed and no home the mistake is still told by the exit status, with no traceback."""
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": "", "XDG_CACHE_HOME": str(tmp_path)}
    program = Path(sys.executable).with_name("encore")
    command = f"exec {program} serve --set synonyms_file=/nope <&- >&-"
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stderr
    assert "encore: Setting 'synonyms_file' (/nope)" in done.stderr
    assert "Traceback" not in done.stderr
