"""What of `encore serve` may die: HAProxy, its manager and the controller without notice, Ray with a clear end.

Accepted jobs survive all of it. The tests share servers, because each start takes half a minute.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from deployments.launcher.host.processes import Process, descendants
from deployments.launcher.supervisor import EXIT_STATUS
from tests.deployments.launcher.conftest import Server, alive
from tests.deployments.launcher.test_launcher import REQUEST, wait

pytestmark = pytest.mark.cluster
ASK = REQUEST | {"num_inference_steps": 50}
GIVEN_UP_SECONDS = 30


def below(server: Server, name: str) -> list[Process]:
    """Return the processes of a server with this name, the oldest first."""
    found = [each for pid in descendants(server.process.pid) if (each := Process.of(pid)) is not None]
    return sorted((each for each in found if each.name == name and each.is_alive()), key=lambda each: int(each.started))


def kill(server: Server, name: str) -> Process:
    """SIGKILL the oldest process of this name; Ray may just be starting it."""
    wait(lambda: bool(below(server, name)), 120)
    victim = below(server, name)[0]
    os.kill(victim.pid, signal.SIGKILL)
    return victim


class Poller:
    """Polls a job without a pause and notes what came, by status; 0 where nobody answered."""

    def __init__(self, server: Server, job: str) -> None:
        self.seen: dict[int, int] = {}
        self.away: list[float] = []
        self.strange: list[str] = []
        self._url = f"{server.url}/v1/videos/{job}"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._poll)
        self._thread.start()

    def __enter__(self) -> Poller:
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        self._thread.join()

    def _poll(self) -> None:
        with httpx.Client(timeout=60, trust_env=False) as http:
            while not self._over.wait(0.02):
                try:
                    answer = http.get(self._url)
                except httpx.HTTPError:
                    status = 0
                    self.away.append(time.monotonic())
                else:
                    status = answer.status_code
                    if status not in (200, 502, 503) or "json" not in answer.headers["content-type"]:
                        self.strange.append(f"{status} {answer.text[:200]}")
                self.seen[status] = self.seen.get(status, 0) + 1


def test_deaths(start: Callable[..., Server], short_tmp: Path) -> None:
    """SIGKILL of HAProxy, of its manager and of the Serve controller: a job is never answered by anything but its state
    or a 503, the API comes back by itself. SIGKILL of the raylet with jobs rendering: the launcher ends all within
    seconds and says what died; after the next start, on the same folder, the jobs are rendered. SIGKILL of the GCS
    then: the same end."""
    folder = short_tmp / "deaths"
    server = start(folder)
    server.wait_for("Encore is ready.")
    with server.http() as http:
        job = http.post("/v1/videos", json=REQUEST).json()["id"]
        wait(lambda: http.get(f"/v1/videos/{job}").json()["status"] == "completed", 60)
    with Poller(server, job) as poller:
        for name in ("haproxy", "ray::HAProxyManager", "ray::ServeController"):
            victim = kill(server, name)
            wait(lambda name=name, victim=victim: any(each != victim for each in below(server, name)), 120)
            answered = poller.seen.get(200, 0)
            wait(lambda before=answered: poller.seen.get(200, 0) > before, 60)
    assert poller.strange == []
    assert "another one stands in" in server.output

    with server.http() as http:
        jobs = [http.post("/v1/videos", json=ASK | {"seed": seed}).json()["id"] for seed in range(2)]
    ended(server, "raylet", "The raylet")

    again = start(folder)
    again.wait_for("Encore is ready.")
    with again.http() as http:
        for each in jobs:
            wait(lambda each=each: http.get(f"/v1/videos/{each}").json()["status"] == "completed", 120)
            assert http.get(f"/v1/videos/{each}/content").status_code == 200
    ended(again, "gcs_server", "Ray's GCS")


def ended(server: Server, name: str, told: str) -> None:
    """Kill a part of Ray and see everything end, soon, with one line that says why."""
    family = descendants(server.process.pid)
    victim = kill(server, name)
    assert server.process.wait(GIVEN_UP_SECONDS) == EXIT_STATUS
    last = server.output.strip().splitlines()[-1]
    assert last.startswith("encore: ")
    assert f"{told} (process {victim.pid})" in last
    assert "logs/server.log" in last
    assert "Traceback" not in server.output
    assert not [pid for pid in family if alive(pid)]
