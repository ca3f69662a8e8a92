"""`encore serve` as a person meets it: ready block, loopback only, clear refusals, a quick and complete end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from deployments.launcher.host.processes import descendants
from serve_app.cache.store_secret import MARKER, marker_of
from serve_app.media import probe
from tests.deployments.launcher.conftest import Server

pytestmark = pytest.mark.cluster

STOP_SECONDS = 15
LISTEN = "0A"
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
"""127.0.0.1, ::1 and ::ffff:127.0.0.1 as the kernel's tables write them."""
MARK = "correct-horse-battery"
REQUEST = {"prompt": "a red circle moves left"}


def test_a_store_of_another_secret(start: Callable[..., Server], short_tmp: Path) -> None:
    """A cache folder whose `secret` was lost: the start ends before Ray's with a line that says what to set."""
    folder = short_tmp / "lost"
    (folder / "l3").mkdir(parents=True)
    (folder / "l3" / MARKER).write_bytes(marker_of(b"the secret that was there"))
    server = start(folder)
    assert server.process.wait(60) == 1
    assert "was written under another secret" in server.output
    assert "ENCORE_SECRET" in server.output
    assert "Traceback" not in server.output
    assert "Ray is starting" not in server.output
    assert not (folder / "l3" / "index.sqlite").exists()


def test_a_life(start: Callable[..., Server], short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start, render through HAProxy, listen on loopback alone, refuse a second server, stop within 15 s and leave
    nothing; started again, the server finds yesterday's video, job, latents and measurements.

    In a folder of an unlikely name, behind a proxy that does not exist, with a secret that nobody gets to read."""
    folder = short_tmp / "a life%20 #1?'$x"
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("ENCORE_OTLP_ENDPOINT", f"http://user:{MARK}@127.0.0.1:9/?api_key={MARK}")
    server = start(folder)
    server.wait_for("Encore is ready.")
    for line in ("API", "Docs", "Ray dashboard", "Metrics", "Cache folder"):
        assert f"  {line} " in server.output
    with server.http() as http:
        first = http.post("/v1/videos/sync", json=REQUEST)
        assert first.headers["x-encore-outcome"] == "rendered"
        assert probe(first.content).num_frames == 16
        job = http.post("/v1/videos", json=REQUEST | {"seed": 5}).json()
        wait(lambda: http.get(f"/v1/videos/{job['id']}").json()["status"] == "completed")
        assert http.get("/docs").status_code == 200

    assert listening_elsewhere(server) == set()
    assert telling(server, folder) == []
    valkey_dies_and_comes_back(server, folder)
    records_die_and_come_back(server, folder)

    second = start(folder)
    assert second.process.wait(30) == 1
    assert "is in use by the server with process id" in second.output
    assert "Traceback" not in second.output

    assert server.stop() < STOP_SECONDS
    assert server.process.returncode == 0
    measured = (folder / "measurements.json").stat().st_mtime_ns

    again = start(folder)
    again.wait_for("Encore is ready.")
    with again.http() as http:
        repeated = http.post("/v1/videos/sync", json=REQUEST)
        assert repeated.headers["cache-status"] == "encore; hit; detail=l2"
        assert repeated.content == first.content
        assert http.get(f"/v1/videos/{job['id']}").json()["status"] == "completed"
        assert http.get(f"/v1/videos/{job['id']}/content").status_code == 200
        slower = http.post("/v1/videos/sync", json=REQUEST | {"fps": 8})
        assert slower.headers["x-encore-outcome"] == "latents"
    assert (folder / "measurements.json").stat().st_mtime_ns == measured
    assert again.stop(signal.SIGINT) < STOP_SECONDS


def test_two_servers_do_not_collide(start: Callable[..., Server], short_tmp: Path) -> None:
    """Two servers started at the same moment on two folders get ports of their own and do not share a cache."""
    servers = [start(short_tmp / name, choose_port=False) for name in ("one", "two")]
    for server in servers:
        server.wait_for("Encore is ready.")
    assert len({server.url for server in servers}) == 2
    for server in servers:
        with server.http() as http:
            assert http.post("/v1/videos/sync", json=REQUEST).headers["x-encore-outcome"] == "rendered"


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["Starting on", "Ray is starting", "Loading the model"])
def test_interrupted_while_starting(
    start: Callable[..., Server], short_tmp: Path, kind: signal.Signals, moment: str
) -> None:
    """A signal at any point of the start-up ends everything within 15 s, and quietly."""
    server = start(short_tmp / f"interrupted-{kind}-{len(moment)}")
    server.wait_for(moment)
    time.sleep(1.0)
    if kind is signal.SIGINT:
        server.process.send_signal(signal.SIGTERM)  # a supervisor's, at the same time
    assert server.stop(kind) < STOP_SECONDS
    assert server.process.returncode == 0
    assert "Traceback" not in server.output


def test_a_killed_launcher_takes_its_children_along(start: Callable[..., Server], short_tmp: Path) -> None:
    """Even SIGKILL of the launcher leaves no Valkey and no server process behind."""
    server = start(short_tmp / "killed")
    server.wait_for("Ray is starting")
    children = descendants(server.process.pid)
    assert len(children) >= 2
    server.process.kill()
    server.process.wait()
    wait(lambda: not any(Path(f"/proc/{pid}/fd").exists() for pid in children), seconds=30)


def test_accepted_jobs_survive_the_death_of_everything(start: Callable[..., Server], short_tmp: Path) -> None:
    """SIGKILL of the launcher, Ray, every replica and Valkey, with jobs queued and rendering: after the restart all are
    rendered without anybody asking, and a POST sent again meets its first job."""
    folder = short_tmp / "dead"
    server = start(folder)
    server.wait_for("Encore is ready.")
    asked = REQUEST | {"num_inference_steps": 50}
    named = {"Idempotency-Key": "order 4711"}
    with server.http() as http:
        jobs = [http.post("/v1/videos", json=asked | {"seed": seed}).json()["id"] for seed in range(3)]
        jobs.append(http.post("/v1/videos", json=asked | {"seed": "random"}, headers=named).json()["id"])
        wait(lambda: any(http.get(f"/v1/videos/{job}").json()["progress"] > 0 for job in jobs))
    kill_all(server)

    again = start(folder)
    again.wait_for("Encore is ready.")
    with again.http() as http:
        repeated = http.post("/v1/videos", json=asked | {"seed": "random"}, headers=named).json()
        assert repeated["id"] == jobs[-1]
        for job in jobs:
            wait(lambda job=job: http.get(f"/v1/videos/{job}").json()["status"] == "completed", seconds=90)
            assert probe(http.get(f"/v1/videos/{job}/content").content).num_frames == 16
    assert again.stop() < STOP_SECONDS


def kill_all(server: Server) -> None:
    """End a server and all that it started as a power cut would."""
    victims = [server.process.pid, *descendants(server.process.pid)]
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    server.process.wait()
    wait(lambda: not any(Path(f"/proc/{pid}/fd").exists() for pid in victims), seconds=30)


def test_a_busy_port_is_named(start: Callable[..., Server], short_tmp: Path) -> None:
    """A port that was asked for and is taken: one line that names it, exit status 1, nothing left running."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = start(short_tmp / "busy", f"--port={port}")
        assert server.process.wait(30) == 1
    assert f"Port {port} (the API) is busy" in server.output
    assert "Traceback" not in server.output


def test_an_unusable_folder_is_named(start: Callable[..., Server], tmp_path: Path) -> None:
    """A cache folder that is a file: one line that says so."""
    (tmp_path / "file").write_text("")
    server = start(tmp_path / "file" / "cache")
    assert server.process.wait(30) == 1
    assert "cannot be used" in server.output
    assert "Traceback" not in server.output


def test_an_unknown_model_is_told_before_ready(start: Callable[..., Server], short_tmp: Path) -> None:
    """A model that does not exist ends the start-up with its name and the known ones."""
    server = start(short_tmp / "unknown", "--model=native/nonsense")
    assert server.process.wait(90) == 1
    assert "There is no model 'native/nonsense'" in server.output
    assert "Traceback" not in server.output


def test_what_cannot_work_is_told_before_ray_starts(start: Callable[..., Server], short_tmp: Path) -> None:
    """A setting that cannot work, also one of a config, is one line; nothing was started for it."""
    config = short_tmp / "config.yaml"
    config.write_text("applications: [{name: encore, args: {synonyms_file: /nope}}]")
    for words in (["--set", "device=cuda"], ["--set", "l3_url=ftp://x"], ["--config", str(config)]):
        server = start(short_tmp / "cannot", *words)
        assert server.process.wait(60) != 0
        assert re.search("device|l3_url|synonyms_file", server.output)
        assert "Ray is starting" not in server.output
        assert "Traceback" not in server.output


def valkey_dies_and_comes_back(server: Server, folder: Path) -> None:
    """A killed Valkey costs no request, and the launcher starts it again with what it held."""
    end_valkey(server, "valkey.sock")
    with server.http() as http:
        assert http.post("/v1/videos/sync", json=REQUEST | {"seed": 6}).headers["x-encore-outcome"] == "rendered"
    server.wait_for("was started again")
    wait(lambda: answers(folder / "run" / "valkey.sock"))


def records_die_and_come_back(server: Server, folder: Path) -> None:
    """Without job records a job is refused with a time to come back, sync requests go on; then all jobs are there."""
    with server.http() as http:
        before = http.get("/v1/videos").json()["data"]
        end_valkey(server, "records.sock")
        refused = http.post("/v1/videos", json=REQUEST | {"seed": 8})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert http.post("/v1/videos/sync", json=REQUEST | {"seed": 7}).status_code == 200
        server.wait_for("Valkey (records) ended and was started again")
        wait(lambda: http.post("/v1/videos", json=REQUEST | {"seed": 8}).status_code == 200)
        assert [job in http.get("/v1/videos").json()["data"] for job in before] == [True] * len(before)
    assert answers(folder / "run" / "records.sock")


def end_valkey(server: Server, of: str) -> None:
    """Kill the one Valkey of this socket."""
    family = descendants(server.process.pid)
    killed = [pid for pid in family if of.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(killed) == 1
    os.kill(killed[0], signal.SIGKILL)


def telling(server: Server, folder: Path) -> list[str]:
    """Return where MARK, the secret in the environment, or a file that others can read is found."""
    family = [server.process.pid, *descendants(server.process.pid)]
    found = [f"arguments of {pid}" for pid in family if MARK in Path(f"/proc/{pid}/cmdline").read_text()]
    sockets = (folder / "run" / "sockets").resolve()
    for path in (*folder.rglob("*"), *sockets.rglob("*")):
        if path.is_file() and not path.is_symlink():
            found += [f"{path}"] if MARK.encode() in path.read_bytes() else []
            found += [f"mode of {path}"] if path.is_relative_to(folder) and path.stat().st_mode & 0o077 else []
    found += [f"mode of {path}" for path in (sockets, folder / "logs") if path.stat().st_mode & 0o077]
    told = dict(re.findall(r"^  (Ray dashboard|Metrics) +(\S+)", server.output, re.MULTILINE))
    dashboard, token = told["Ray dashboard"], re.search(r"asks for the token in (.+)\)$", server.output, re.MULTILINE)
    headers = {"Authorization": f"Bearer {Path(token[1]).read_text().strip()}"} if token else {}
    urls = [told["Metrics"], *(f"{server.url}/{path}" for path in ("v1/stats", "v1/models", "readyz", "openapi.json"))]
    urls += [f"{dashboard}/api/{path}" for path in ("serve/applications/", "v0/actors?detail=1", "v0/workers?detail=1")]
    urls += [
        f"{dashboard}/{path}"
        for path in ("nodes?view=summary", "logical/actors", "api/jobs/", "api/v0/runtime_envs?detail=1")
    ]
    with httpx.Client(headers=headers, timeout=60, trust_env=False) as http:
        answers = {url: http.get(url) for url in urls}
    refused = {url: answer.status_code for url, answer in answers.items() if not answer.is_success}
    assert not refused
    return found + [url for url, answer in answers.items() if MARK in answer.text] + [MARK] * (MARK in server.output)


def answers(path: Path) -> bool:
    """Whether somebody accepts connections on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def listening_elsewhere(server: Server) -> set[str]:
    """Return the addresses beyond loopback, as /proc shows them, on which a process of `server` listens."""
    owned = {
        str(link.readlink())
        for pid in (server.process.pid, *descendants(server.process.pid))
        for link in Path(f"/proc/{pid}/fd").glob("*")
        if link.is_symlink()
    }
    listening = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN and f"socket:[{fields[9]}]" in owned:
                listening.add(fields[1].split(":")[0])
    assert listening & LOOPBACK, "the server listens nowhere: this test looks at the wrong place"
    return listening - LOOPBACK


def wait(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until `condition` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.1)
