"""What the launcher watches while the server runs, and when it gives up.

Death is told at once: without the raylet or the GCS nothing that Ray runs can go on, and a new Ray must not be started
beside the remains of one, so the launcher ends all of it, says what died, and leaves the next start to what started it
(exit status 75). Slowness is not death: a process that is stopped, a Serve controller that is away, a Ray that is
silent and an API that does not answer have long limits, in time that was spent waiting, because a machine at a load of
30 takes half a minute for what takes a second otherwise. HAProxy alone is replaced at once, by a stand-in with the
configuration that was known last; Ray needs seconds to notice, and its next HAProxy takes the ports over.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from deployments.launcher import haproxy
from deployments.launcher.api_probe import ApiProbe
from deployments.launcher.host.folder import CacheFolder
from deployments.launcher.host.processes import Process, descendants, load, spawn
from serve_app.errors import EncoreError, Unavailable

EXIT_STATUS = 75
"""Of a launcher whose server died (EX_TEMPFAIL of sysexits.h: start it again and it goes on)."""

STOPPED_SECONDS = 20.0
ABSENT_SECONDS = 120.0
BEAT_SECONDS = 180.0
LOOK_INTERVAL = 1.0
STAND_IN_SECONDS = 1.0


class ServerDied(EncoreError):
    """A part of the server that cannot be replaced died or hangs; everything is to be ended."""


@dataclass
class Patience:
    """Counts the seconds that something was seen wrong; time without a look does not count."""

    limit: float
    clock: Callable[[], float]
    spent: float = 0.0
    _last: float | None = field(default=None, init=False)

    def is_over(self, wrong: bool, longest_step: float = 5.0) -> bool:
        """Tell whether it has now been `wrong` for longer than the limit, at every look."""
        now = self.clock()
        step = 0.0 if self._last is None else min(now - self._last, longest_step)
        self._last = now if wrong else None
        self.spent = self.spent + step if wrong else 0.0
        return self.spent > self.limit


class Watch:
    """Watches what runs below the server process; `check` is to be called a few times a second."""

    def __init__(
        self,
        server: subprocess.Popen[bytes],
        folder: CacheFolder,
        probe: ApiProbe,
        options: haproxy.Options,
        binary: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._folder = folder
        self._probe = probe
        self._clock = clock
        self._looked_at = -LOOK_INTERVAL
        self._has_ray = self._has_api = False
        self._ray: dict[str, Process] = {}
        self._stopped = {name: Patience(STOPPED_SECONDS, clock) for name in _RAY}
        self._controller = Patience(ABSENT_SECONDS, clock)
        self._beat: int | None = None
        self._silence = Patience(BEAT_SECONDS, clock)
        self._haproxy = HaproxyWatch(folder, options, binary, clock)

    def ray_is_up(self) -> None:
        """Ray runs from now on; before, it may still be started anew."""
        self._has_ray = True

    def api_is_up(self) -> None:
        """The API answers from now on."""
        self._has_api = True

    def check(self, ended: bool, last_beat: int | None) -> str | None:
        """Look at everything; return what a person should know, if anything.

        ended: whether the server process has; last_beat: when it last showed that Ray is well. Raises ServerDied, and
        Unavailable while the server is being started.
        """
        dead = [f"{_RAY[name]} (process {each.pid})" for name, each in self._ray.items() if not each.is_alive()]
        if dead:
            raise self._died(" and ".join(dead), "died")
        if ended and self._has_api:
            raise self._died("The server process", f"ended by itself with status {self._server.returncode}")
        if ended:
            log = f"{self._folder.logs}/server.log ends with:\n{self._folder.tail('server.log')}"
            raise Unavailable(f"The server process ended by itself ({load()}); {log}")
        if self._has_ray and self._clock() - self._looked_at >= LOOK_INTERVAL:
            self._looked_at = self._clock()
            self._look(last_beat)
        if not self._has_api:
            return None
        if (silence := self._probe.check()) is not None:
            raise self._died("The API", silence)
        return self._haproxy.check()

    def _look(self, last_beat: int | None) -> None:
        below = [each for pid in descendants(self._server.pid) if (each := Process.of(pid)) is not None]
        for process in sorted(
            below, key=lambda each: int(each.started)
        ):  # a fork of the raylet bears its name for a while
            if process.name in _RAY:
                self._ray.setdefault(process.name, process)
        for name, process in self._ray.items():
            if self._stopped[name].is_over(process.is_stopped()):
                raise self._died(f"{_RAY[name]} (process {process.pid})", f"was stopped for {STOPPED_SECONDS:.0f} s")
        if not self._has_api:
            return
        if self._controller.is_over(all(each.name != _CONTROLLER for each in below)):
            raise self._died("The Serve controller", f"did not come back for {ABSENT_SECONDS:.0f} s")
        silent, self._beat = last_beat == self._beat, last_beat
        if self._silence.is_over(silent):
            raise self._died("Ray", f"did not answer for {BEAT_SECONDS:.0f} s")

    def _died(self, what: str, how: str) -> ServerDied:
        return died(what, how, self._folder, self._log_dir())

    def _log_dir(self) -> Path | None:
        return next((found for process in self._ray.values() if (found := process.option("--log_dir"))), None)


_RAY = {"gcs_server": "Ray's GCS", "raylet": "The raylet"}
"""Without which Ray is dead, by the names of their programs."""
_CONTROLLER = "ray::ServeController"


def died(what: str, how: str, folder: CacheFolder, ray_logs: Path | None = None) -> ServerDied:
    """Return the error that says what died, where the logs are, and what is next."""
    logs = f"{folder.logs}/server.log" + (f" and {ray_logs}" if ray_logs else "")
    return ServerDied(
        f"{what} {how} ({load()}); logs: {logs}. Everything else was ended. Accepted jobs are kept and go on at the "
        f"next start: run `encore serve` again (exit status {EXIT_STATUS} tells a supervisor to)."
    )


_ROUTES = f"**/*{haproxy.LAST_ROUTES}"


class HaproxyWatch:
    """Starts a stand-in when no HAProxy runs; the next one of Ray's takes its ports over."""

    def __init__(
        self, folder: CacheFolder, options: haproxy.Options, binary: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._options = options
        self._binary = binary
        self._clock = clock
        self._known: list[Process] = []
        self._stand_ins: list[subprocess.Popen[bytes]] = []
        self._tried_at = -STAND_IN_SECONDS

    def check(self) -> str | None:
        """Start a stand-in if it is needed; return what a person should know."""
        self._stand_ins = [each for each in self._stand_ins if each.poll() is None]
        if any(each.is_alive() for each in self._known):
            return None
        configs = [found.with_name(found.name.removesuffix(haproxy.LAST_ROUTES)) for found in self._routes()]
        self._known = [
            process
            for config in configs
            for pid in haproxy.running(config)
            if (process := Process.of(pid)) is not None and process.is_alive()
        ]
        if self._known or not configs or self._clock() - self._tried_at < STAND_IN_SECONDS:
            return None
        self._tried_at = self._clock()
        config = haproxy.write_stand_in(configs[0], self._options)
        self._stand_ins.append(
            spawn(
                [self._binary, "-db", "-dR", "-f", str(config)], env=os.environ, log=self._folder.logs / "haproxy.log"
            )
        )
        return "HAProxy ended; another one stands in until Ray has started its own again."

    def _routes(self) -> list[Path]:
        found = {each for part in (self._folder.run, self._folder.sockets) for each in part.glob(_ROUTES)}
        return sorted(found, key=lambda each: -each.stat().st_mtime)
