"""The launcher: owns the machine's part of a local server, so that Ray only serves.

In order: lock the cache folder, find ports, start Valkey (twice: for L2, for job records), start Ray and deploy, say
that it is ready, watch (`watch`). On Ctrl-C or SIGTERM, at any point, the same backwards: stop accepting and drain
(Serve), stop Ray, stop Valkey, end whatever descendant is left. The whole takes at most fifteen seconds; what would
take longer is killed. Where a part died that cannot be replaced, nothing is drained.

Exit status: 0 after Ctrl-C or SIGTERM, 1 when the server could not be started as it was asked for, 75 when it died:
to be started again, as a supervisor does (systemd: Restart=on-failure).
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from pydantic import SecretStr

from deployments.launcher.address import Address
from deployments.launcher.api_probe import ApiProbe
from deployments.launcher.haproxy import BINARY_VARIABLE
from deployments.launcher.host.environment import Ports, choose_ports, environment, haproxy_options
from deployments.launcher.host.folder import CacheFolder
from deployments.launcher.host.ports import LOOPBACK, FreePorts
from deployments.launcher.host.private_files import open_private
from deployments.launcher.host.processes import allow_many_files, become_subreaper, end, end_descendants, load, spawn
from deployments.launcher.preflight import check
from deployments.launcher.status_file import FILE_VARIABLE, Listener
from deployments.launcher.storage_warnings import broken_tiers
from deployments.launcher.supervisor import EXIT_STATUS, ServerDied, Watch, died
from deployments.launcher.valkey import CACHE, RECORDS, EmbeddedValkey
from deployments.replica.instance import new_instance
from serve_app.errors import EncoreError, Unavailable
from serve_app.service.jobs.records_server import RecordsServer
from serve_app.setting_sources import of_environment
from serve_app.settings import UNSET_SECRET, Settings
from serve_app.urls import quoted_path
from serve_app.wiring.tiers import require_own_stores

LOCAL_CONFIG = Path(__file__).parents[1] / "config" / "local.yaml"
SERVER_COMMAND = [sys.executable, "-P", "-m", "deployments.launcher.ray_driver"]
CHOSEN_TIERS = ("redis_url", "jobs_url", "l3_url")
"""Where a person has chosen none, the launcher brings its own; what the environment says of them stays there."""

DEFAULT_PORT = 8000
DRAIN_SECONDS = 10.0
VALKEY_SECONDS = 3.0
RECORDS_SECONDS = 2.0
REST_SECONDS = 1.0

SLOW_SECONDS = 30.0
STAGES = {"ray": "Ray is starting", "deploying": "Loading the model"}
Say = Callable[[str], None]


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM."""


def launch(
    cache_dir: Path, *, port: int | None, overrides: dict[str, Any], config: Path = LOCAL_CONFIG, say: Say = print
) -> int:
    """Serve until interrupted; return the exit status. Raises EncoreError when the server cannot start.

    port: a number that must be free, or None for the first free one from 8000 on. overrides: Settings fields that
    replace those of the config's `args`. say: gets what a person should read.
    """
    become_subreaper()
    allow_many_files()
    with _interruptible(), ExitStack() as undo:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))  # see cli/serve.py
            settings = check(_args(config) | overrides, say)
            running = _start(undo, cache_dir, port, overrides, config, settings, say)
            while True:
                ended = running.server.poll() is not None  # before its last events are read
                for event in running.listener.new():
                    _report(event, running, say)
                running.stage.tick(say)
                for valkey in running.valkeys:
                    if valkey.revive():
                        say(f"Valkey ({valkey.role.name}) ended and was started again; {valkey.role.lost}.")
                if told := running.watch.check(ended, running.listener.last_beat()):
                    say(told)
                time.sleep(0.1)
        except Interrupted:
            say("Stopping ...")
        except ServerDied:
            undo.callback(end, running.server, 0.0)
            raise
    return 0


@dataclass
class _Running:
    """What was started, and how far it is."""

    folder: CacheFolder
    ports: Ports
    listener: Listener
    valkeys: list[EmbeddedValkey]
    server: subprocess.Popen[bytes]
    watch: Watch
    stage: Stage


def _start(
    undo: ExitStack,
    cache_dir: Path,
    port: int | None,
    overrides: dict[str, Any],
    config: Path,
    settings: Settings,
    say: Say,
) -> _Running:
    folder = CacheFolder(cache_dir)
    undo.callback(folder.release)
    free = FreePorts()
    undo.callback(free.release)
    undo.callback(end_descendants, REST_SECONDS)
    ports = _ports(port, free, say)
    say(f"Starting on {folder.root} (a first start takes about half a minute) ...")
    tiers = dict(overrides)
    chosen = {*_args(config), *overrides, *(name for name in CHOSEN_TIERS if of_environment(name))}
    _check_records(settings)
    valkeys = _valkeys(undo, folder, chosen, tiers)
    if "l3_url" not in chosen:
        tiers["l3_url"] = f"file://{quoted_path(folder.l3)}"
    _require_own_stores(settings, tiers, folder)
    measurements = {"ENCORE_MEASUREMENTS_FILE": str(folder.root / "measurements.json")}
    listener = Listener(folder.run / "events")
    rendered = folder.run / "config.json"
    with open_private(rendered, "w") as file:
        json.dump(_render(config, ports.http, tiers), file)
    options = haproxy_options(new_instance(), settings)
    env = measurements | environment(folder, ports, options, overrides.get("otlp_endpoint"))
    server = spawn(
        [*SERVER_COMMAND, str(rendered), str(ports.dashboard), str(ports.metrics)],
        env=env | {FILE_VARIABLE: str(listener.path)},
        log=folder.logs / "server.log",
    )
    undo.callback(end, server, DRAIN_SECONDS)
    watch = Watch(server, folder, ApiProbe(ports.http, options.instance), options, env[BINARY_VARIABLE])
    return _Running(folder, ports, listener, valkeys, server, watch, Stage())


def _valkeys(undo: ExitStack, folder: CacheFolder, chosen: set[str], tiers: dict[str, Any]) -> list[EmbeddedValkey]:
    """Start those that no setting stands for, and name them in `tiers`; a Redis that is given holds both."""
    roles = {}
    if "redis_url" not in chosen:
        roles["redis_url"] = (CACHE, folder.valkey)
        if "jobs_url" not in chosen:
            roles["jobs_url"] = (RECORDS, folder.records)
    valkeys = {setting: EmbeddedValkey(folder, role, data) for setting, (role, data) in roles.items()}
    for setting, valkey in valkeys.items():
        undo.callback(valkey.stop, VALKEY_SECONDS)
        tiers[setting] = valkey.url
    for valkey in valkeys.values():
        valkey.wait_until_ready()
    return list(valkeys.values())


def _check_records(settings: Settings) -> None:
    """Raise InvalidRequest, before Ray starts, when the server that is to hold job records would evict them."""
    setting = "jobs_url" if settings.jobs_url is not None else "redis_url"
    url = getattr(settings, setting)
    if url is not None:
        RecordsServer(url, setting, RECORDS_SECONDS).check_at_start()


def _ports(port: int | None, free: FreePorts, say: Say) -> Ports:
    if port is not None:
        return choose_ports(free.demanded(port, "the API"), free)
    http = free.near(DEFAULT_PORT)
    if http != DEFAULT_PORT:
        say(f"Port {DEFAULT_PORT} is busy; using {http}.")
    return choose_ports(http, free)


def _args(config: Path) -> dict[str, Any]:
    args: dict[str, Any] = yaml.safe_load(config.read_text("utf-8"))["applications"][0].get("args") or {}
    return args


def _render(config: Path, http_port: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """Return the config as a dict, with this machine's port and tiers filled in."""
    rendered: dict[str, Any] = yaml.safe_load(config.read_text())
    rendered["http_options"] = {**rendered.get("http_options", {}), "host": LOOPBACK, "port": http_port}
    application = rendered["applications"][0]
    application["args"] = {**application.get("args", {}), **overrides}
    return rendered


def _require_own_stores(settings: Settings, tiers: dict[str, Any], folder: CacheFolder) -> None:
    """Raise ForeignStore at once, not after Ray's start, for a tier that was written under another secret."""
    secret = settings.secret
    if secret.get_secret_value() == UNSET_SECRET:
        secret = SecretStr(folder.secret)
    chosen = {name: tiers[name] for name in CHOSEN_TIERS if name in tiers}
    require_own_stores(settings.model_copy(update={"secret": secret, **chosen}))


def _report(event: dict[str, Any], running: _Running, say: Say) -> None:
    state, folder, ports = event["state"], running.folder, running.ports
    if state == "slow":
        say(event["message"])
        return
    if state == "lost":
        raise died("The raylet", f"hangs: {event['message']}", folder)
    if state == "failed":
        lines = [line for line in event["message"].splitlines() if any(map(str.isalnum, line))] or ["no reason given"]
        what = "" if event.get("stage") == "ray" else "The application could not be deployed: "
        raise Unavailable(f"{what}{lines[-1]} (more in {folder.logs}/server.log)")
    running.stage.enter(state)
    if state != "ready":
        if state == "deploying":
            running.watch.ray_is_up()
        say(f"{STAGES[state]} ...")
        return
    running.watch.api_is_up()
    address = Address.of(event["ray_address"], f"http://{LOOPBACK}:{ports.dashboard}")
    address.write(folder.run)
    say(_ready(folder, ports, address))
    for line in broken_tiers(f"http://{LOOPBACK}:{ports.http}"):
        say(f"Warning: {line}")


def _ready(folder: CacheFolder, ports: Ports, address: Address) -> str:
    url = f"http://{LOOPBACK}:{ports.http}"
    there = "" if ports.http == DEFAULT_PORT else f" --url {url}"
    asks = f" (asks for the token in {address.token_file})" if address.token_file else ""
    return (
        "\nEncore is ready.\n"
        f"  API            {url}/v1/videos\n"
        f"  Docs           {url}/docs\n"
        f"  Ray dashboard  {address.dashboard}{asks}\n"
        f"  Metrics        http://{LOOPBACK}:{ports.metrics}/metrics\n"
        f"  Cache folder   {folder.root}\n"
        f"  Logs           {folder.logs}; Ray's, while it runs: {folder.sockets}/ray/session_latest/logs\n"
        f"  HAProxy        statistics on {ports.haproxy_stats}, metrics on {ports.haproxy_metrics} (loopback only)\n"
        f"  Ray's tools    export {address.variables()}; serve status\n"
        f'  Try            encore generate "a red circle moves left" -o out.mp4{there}\n'
        "  Stop           Ctrl-C\n"
    )


class Stage:
    """How far the start is; tells a person every SLOW_SECONDS that it is still there, and how busy the machine is."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._name = ""
        self._since = self._told = clock()

    def enter(self, name: str) -> None:
        """The stage `name` of STAGES begins, or the server is ready."""
        self._name = name
        self._since = self._told = self._clock()

    def tick(self, say: Say) -> None:
        """Say so when the stage takes long."""
        now = self._clock()
        if self._name in STAGES and now - self._told >= SLOW_SECONDS:
            self._told = now
            say(f"{STAGES[self._name]} still, for {now - self._since:.0f} s ({load()}) ...")


@contextmanager
def _interruptible() -> Iterator[None]:
    """QueuedRender the first SIGINT or SIGTERM into Interrupted; later ones do nothing, until the process has ended."""
    interrupted = False

    def interrupt(signum: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True  # not SIG_IGN: Python complains of a signal that came just before that
            raise Interrupted

    previous = {kind: signal.signal(kind, interrupt) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if not interrupted:
            for kind, handler in previous.items():
                signal.signal(kind, handler)


def _print(text: str) -> None:
    """Print what a person should read; a reader that has gone, or cannot show a character, does not end the server."""
    with suppress(OSError, ValueError):
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors != "backslashreplace":
            sys.stdout.reconfigure(errors="backslashreplace")
        print(text, flush=True)  # noqa: T201 - this is a program


def main(arguments: dict[str, Any]) -> int:
    """Run `launch` for the command line; errors are one line on standard error and exit status 1, or 75."""
    os.umask(0o077)  # of all children too: logs and configurations are for their owner alone
    try:
        return launch(
            Path(arguments["cache_dir"]),
            port=arguments["port"],
            overrides=arguments["overrides"],
            config=Path(arguments["config"]) if arguments["config"] else LOCAL_CONFIG,
            say=_print,
        )
    except EncoreError as error:
        print(f"encore: {error.message}", file=sys.stderr)  # noqa: T201
        return EXIT_STATUS if isinstance(error, ServerDied) else 1


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
