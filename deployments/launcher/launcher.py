"""The launcher: owns the machine's part of a local server, so that Ray only serves.

In order: lock the cache folder, find ports, start Valkey, start Ray and deploy, say that it is ready, wait. On Ctrl-C
or SIGTERM, at any point, the same backwards: stop accepting and drain (Serve), stop Ray, stop Valkey, end whatever
descendant is left. The whole takes at most fifteen seconds; what would take longer is killed.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from deployments.launcher.address import Address
from deployments.launcher.broken import broken_tiers
from deployments.launcher.check import check
from deployments.launcher.environment import Ports, choose_ports, environment
from deployments.launcher.folder import CacheFolder
from deployments.launcher.ports import LOOPBACK, FreePorts
from deployments.launcher.private import open_private
from deployments.launcher.processes import become_subreaper, end, end_descendants, spawn
from deployments.launcher.talk import FILE_VARIABLE, Listener
from deployments.launcher.valkey import EmbeddedValkey
from serve_app.errors import EncoreError, Unavailable
from serve_app.setting_sources import of_environment
from serve_app.urls import quoted_path

LOCAL_CONFIG = Path(__file__).parents[1] / "config" / "local.yaml"
SERVER_COMMAND = [sys.executable, "-P", "-m", "deployments.launcher.server"]
CHOSEN_TIERS = ("redis_url", "l3_url")
"""Where a person has chosen none, the launcher brings its own; what the environment says of them stays there."""

DEFAULT_PORT = 8000
DRAIN_SECONDS = 10.0
VALKEY_SECONDS = 3.0
REST_SECONDS = 1.0

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
    with _interruptible(), ExitStack() as undo:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))  # see cli/serve.py
            check(_args(config) | overrides, say)
            folder, ports, listener, valkey, server = _start(undo, cache_dir, port, overrides, config, say)
            while server.poll() is None:
                for event in listener.new():
                    _report(event, folder, ports, say)
                if valkey is not None and valkey.revive():
                    say("Valkey ended and was started again; requests went on without L2 meanwhile.")
                time.sleep(0.1)
            raise Unavailable(
                f"The server process ended by itself; {folder.logs}/server.log ends with:\n{folder.tail('server.log')}"
            )
        except Interrupted:
            say("Stopping ...")
    return 0


def _start(
    undo: ExitStack, cache_dir: Path, port: int | None, overrides: dict[str, Any], config: Path, say: Say
) -> tuple[CacheFolder, Ports, Listener, EmbeddedValkey | None, Any]:
    folder = CacheFolder(cache_dir)
    undo.callback(folder.release)
    undo.callback(end_descendants, REST_SECONDS)
    free = FreePorts()
    undo.callback(free.release)
    ports = _ports(port, free, say)
    say(f"Starting on {folder.root} (a first start takes about half a minute) ...")
    tiers = dict(overrides)
    chosen = {*_args(config), *overrides, *(name for name in CHOSEN_TIERS if of_environment(name))}
    valkey = None
    if "redis_url" not in chosen:
        valkey = EmbeddedValkey(folder)
        undo.callback(valkey.stop, VALKEY_SECONDS)
        valkey.wait_until_ready()
        tiers["redis_url"] = valkey.url
    if "l3_url" not in chosen:
        tiers["l3_url"] = f"file://{quoted_path(folder.l3)}"
    measurements = {"ENCORE_MEASUREMENTS_FILE": str(folder.root / "measurements.json")}
    listener = Listener(folder.run / "events")
    rendered = folder.run / "config.json"
    with open_private(rendered, "w") as file:
        json.dump(_render(config, ports.http, tiers), file)
    server = spawn(
        [*SERVER_COMMAND, str(rendered), str(ports.dashboard), str(ports.metrics)],
        env=measurements
        | environment(folder, ports, overrides.get("otlp_endpoint"))
        | {FILE_VARIABLE: str(listener.path)},
        log=folder.logs / "server.log",
    )
    undo.callback(end, server, DRAIN_SECONDS)
    return folder, ports, listener, valkey, server


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


def _report(event: dict[str, Any], folder: CacheFolder, ports: Ports, say: Say) -> None:
    state = event["state"]
    if state == "failed":
        lines = event["message"].strip().splitlines() or ["no reason given"]
        raise Unavailable(f"The application could not be deployed: {lines[-1]} (more in {folder.logs}/server.log)")
    if state != "ready":
        say({"ray": "Ray is starting ...", "deploying": "Loading the model ..."}[state])
        return
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


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into Interrupted; later ones do nothing, until the process has ended."""
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
    """Run `launch` for the command line; errors are one line on standard error and exit status 1."""
    os.umask(0o077)  # of all children too: logs and configurations are nobody else's business
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
        return 1


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
