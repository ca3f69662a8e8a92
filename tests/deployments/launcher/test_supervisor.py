"""The launcher's watch, over processes of the test's own and an injected clock: death at once, slowness late."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deployments.launcher import supervisor as module
from deployments.launcher.api_probe import INTERVAL_SECONDS, QUESTION_SECONDS, SILENCE_SECONDS, ApiProbe
from deployments.launcher.haproxy import HEADER, LAST_ROUTES, Options
from deployments.launcher.host.folder import CacheFolder
from deployments.launcher.host.processes import Process
from deployments.launcher.supervisor import Patience, ServerDied, Watch
from serve_app.errors import Unavailable
from tests.conftest import free_ports

OURS = "1234abcd"
_PARENT = """
import subprocess, sys, time
children = [subprocess.Popen([path, "1000"]) for path in sys.argv[1:]]
print("up", flush=True)
time.sleep(1000)
"""


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Tree:
    """A server process with a raylet, a GCS and a controller below it: programs that sleep, under those names."""

    def __init__(self, folder: Path) -> None:
        names = ("gcs_server", "raylet", "ray::ServeController")
        paths = [folder / name for name in names]
        for path in paths:
            shutil.copy("/bin/sleep", path)
        self.process = subprocess.Popen([sys.executable, "-c", _PARENT, *paths], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "up\n"
        self.process.stdout.close()
        self.pids: dict[str, int] = {}
        end = time.monotonic() + 30
        while len(self.pids) < len(names):
            assert time.monotonic() < end
            for pid in module.descendants(self.process.pid):
                if (found := Process.of(pid)) is not None and found.name in names:
                    self.pids[found.name] = pid

    def signal(self, name: str, kind: signal.Signals) -> None:
        """Send a signal and wait until it has had its effect."""
        pid = self.pids[name]
        process = Process.of(pid)
        assert process is not None
        os.kill(pid, kind)
        end = time.monotonic() + 30
        while (process.is_stopped(), process.is_alive()) != {
            signal.SIGKILL: (False, False), signal.SIGSTOP: (True, True), signal.SIGCONT: (False, True)
        }[kind]:  # fmt: skip
            assert time.monotonic() < end
            time.sleep(0.01)

    def stop(self) -> None:
        for pid in self.pids.values():
            os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


class AlwaysThere(ApiProbe):
    def check(self) -> str | None:
        return None


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    tree = Tree(tmp_path)
    yield tree
    tree.stop()


@pytest.fixture
def folder(short_tmp: Path) -> Iterator[CacheFolder]:
    folder = CacheFolder(short_tmp / "watched")
    yield folder
    folder.release()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(tree: Tree, folder: CacheFolder, clock: Clock) -> Watch:
    options = Options(OURS, 1, 1, 1, 100)
    watch = Watch(tree.process, folder, AlwaysThere(1, OURS), options, "/bin/false", clock)
    watch.ray_is_up()
    assert watch.check(False, 1) is None
    watch.api_is_up()
    return watch


def look(watch: Watch, clock: Clock, seconds: float, beats: Iterator[int] | None = None, *, step: float = 1.0) -> None:
    """Let `seconds` pass with a look every `step`; the server beats unless `beats` says when it did."""
    for _ in range(round(seconds / step)):
        clock.now += step
        watch.check(False, int(clock.now) if beats is None else next(beats))


@pytest.mark.parametrize(("name", "told"), [("raylet", "The raylet"), ("gcs_server", "Ray's GCS")])
def test_a_death_is_told_at_once(watch: Watch, tree: Tree, clock: Clock, name: str, told: str) -> None:
    """Proves that the death of the raylet or the GCS ends the watch at the next look, with its name, the log and what
    is next."""
    look(watch, clock, 2)
    tree.signal(name, signal.SIGKILL)
    with pytest.raises(ServerDied, match=rf"{told} \(process {tree.pids[name]}\) died .*server\.log.*encore serve"):
        watch.check(False, 1)


def test_a_stopped_raylet_has_some_time(watch: Watch, tree: Tree, clock: Clock) -> None:
    """Proves that one that goes on in time is forgiven, and one that does not is given up."""
    tree.signal("raylet", signal.SIGSTOP)
    look(watch, clock, module.STOPPED_SECONDS - 2)
    tree.signal("raylet", signal.SIGCONT)
    look(watch, clock, 5)
    tree.signal("raylet", signal.SIGSTOP)
    look(watch, clock, module.STOPPED_SECONDS - 2)
    with pytest.raises(ServerDied, match=r"The raylet .* was stopped for 20 s"):
        look(watch, clock, 10)


def test_a_controller_may_be_away(watch: Watch, tree: Tree, clock: Clock) -> None:
    """Proves that Ray has two minutes to bring its controller back."""
    tree.signal("ray::ServeController", signal.SIGKILL)
    look(watch, clock, module.ABSENT_SECONDS - 8, step=4.0)
    with pytest.raises(ServerDied, match="The Serve controller did not come back for 120 s"):
        look(watch, clock, 20, step=4.0)


def test_a_silent_ray_is_given_up_late(watch: Watch, clock: Clock) -> None:
    """Proves that a server process which stops beating has three minutes, and that each beat begins them anew."""
    look(watch, clock, module.BEAT_SECONDS - 8, iter([7] * 1000), step=4.0)
    look(watch, clock, 1)
    look(watch, clock, module.BEAT_SECONDS - 8, iter([9] * 1000), step=4.0)
    with pytest.raises(ServerDied, match="Ray did not answer for 180 s"):
        look(watch, clock, 20, iter([9] * 1000), step=4.0)


def test_the_end_of_the_server_process(watch: Watch, tree: Tree, folder: CacheFolder) -> None:
    """Proves that after the start it is a death, and before it a start that failed, with the end of the log."""
    with pytest.raises(ServerDied, match="The server process ended by itself"):
        watch.check(True, 1)
    (folder.logs / "server.log").write_text("the reason")
    starting = Watch(tree.process, folder, AlwaysThere(1, OURS), Options(OURS, 1, 1, 1, 100), "/bin/false")
    with pytest.raises(Unavailable, match="the reason"):
        starting.check(True, None)


def test_time_in_which_nobody_looked_does_not_count() -> None:
    """Proves that a machine that slept for an hour has not been silent for an hour."""
    clock = Clock()
    patience = Patience(20.0, clock)
    assert not patience.is_over(True)
    clock.now += 3600
    assert not patience.is_over(True)
    for _ in range(4):
        clock.now += 4
        over = patience.is_over(True)
    assert over


def test_a_missing_haproxy_is_replaced_at_once(folder: CacheFolder, clock: Clock, tree: Tree, tmp_path: Path) -> None:
    """Proves that a stand-in is started when no HAProxy of this server runs, not twice a second, and not while one
    does or none ever did."""
    node = folder.run / "node"
    node.mkdir()
    started = tmp_path / "started"
    binary = tmp_path / "haproxy"
    binary.write_text(f"#!/bin/sh\necho x >> {started}\n")
    binary.chmod(0o700)
    replacing = module.HaproxyWatch(folder, Options(OURS, 1, 1, 1, 100), str(binary), clock)
    assert replacing.check() is None
    (node / f"haproxy.cfg{LAST_ROUTES}").write_text("frontend x\n    bind :1\n")
    assert "stands in" in (replacing.check() or "")
    assert (node / "haproxy.cfg.stand-in").read_text() == "frontend x\n    bind 127.0.0.1:1\n"
    assert replacing.check() is None
    clock.now += module.STAND_IN_SECONDS
    assert "stands in" in (replacing.check() or "")
    (node / "haproxy.cfg").write_text("")
    ours = subprocess.Popen(["haproxy", "-f", str(node / "haproxy.cfg")], executable=shutil.which("tail"))
    try:
        clock.now += 10
        wait_for(lambda: replacing.check() is None and bool(replacing._known))
    finally:
        ours.kill()
        ours.wait()
    for child in replacing._stand_ins:
        child.wait()
    wait_for(lambda: started.exists() and started.read_text().count("x") >= 2)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def answering(listener: socket.socket, answer: bytes | None) -> threading.Thread:
    """Answer every connection with `answer`; none: stay silent."""

    def serve() -> None:
        kept = []
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                for each in kept:
                    each.close()
                return
            if answer is None:
                kept.append(connection)
                continue
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


def asked(probe: ApiProbe, clock: Clock, seconds: float, step: float) -> str | None:
    """Let `seconds` pass in steps, with time for an answer in each; return what the probe says first, or last."""
    for _ in range(round(seconds / step)):
        clock.now += step
        for _ in range(6):
            if said := probe.check():
                return said
            time.sleep(0.001)
    return None


SIGNED = f"HTTP/1.1 200 OK\r\n{HEADER.title()}: {OURS}\r\ncontent-length: 0\r\n\r\n".encode()
OTHERS = b"HTTP/1.1 200 OK\r\nx-encore-instance: another\r\ncontent-length: 2\r\n\r\nok"


@pytest.mark.parametrize(
    ("answer", "told"),
    [(SIGNED, None), (OTHERS, "no answer of this server's"), (b"HTTP/1.1 503 No\r\n\r\n", "503 No"), (b"", "''")],
    ids=["ours", "another server's", "HAProxy's own", "cut off"],
)
def test_the_api_must_answer_as_this_server(clock: Clock, answer: bytes, told: str | None) -> None:
    """Proves that only an answer with our id counts, and that two minutes without one are told with what came."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = answering(listener, answer)
        probe = ApiProbe(listener.getsockname()[1], OURS, clock)
        assert asked(probe, clock, SILENCE_SECONDS / 2, INTERVAL_SECONDS) is None
        said = asked(probe, clock, SILENCE_SECONDS, INTERVAL_SECONDS)
        assert said is None if told is None else told in (said or "")
        probe.close()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_nobody_on_the_port_and_nobody_who_answers(clock: Clock) -> None:
    """Proves that a refused connection and a silent one are told, and that a long sleep makes neither count more."""
    probe = ApiProbe(free_ports(1)[0], OURS, clock)
    assert "ECONNREFUSED" in (asked(probe, clock, 2 * SILENCE_SECONDS, INTERVAL_SECONDS) or "")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = answering(listener, None)
        silent = ApiProbe(listener.getsockname()[1], OURS, clock)
        assert asked(silent, clock, 3600, 3600) is None
        assert asked(silent, clock, QUESTION_SECONDS, 10) is None
        assert "no answer within" in (asked(silent, clock, 2 * SILENCE_SECONDS, 10) or "")
        silent.close()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
