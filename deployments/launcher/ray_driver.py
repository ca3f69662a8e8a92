"""The Ray driver: a child process of the launcher that starts Ray, deploys one config, and undoes both on SIGTERM.

    python -m deployments.launcher.ray_driver CONFIG.json DASHBOARD_PORT METRICS_PORT

Deploying goes through Ray's REST API, the same door as `serve deploy` in production, so the local server exercises
what the cluster runs. It tells one JSON line per event: {"state": "ray" | "deploying" | "ready" | "slow" | "failed" |
"lost", ...}. Once ready it asks Ray every few seconds whether its node lives, and touches a file when it does, which
the launcher watches.
"""

from __future__ import annotations

import json
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import ray
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from deployments.launcher.host.ports import LOOPBACK
from deployments.launcher.host.processes import become_subreaper, end_descendants, load
from deployments.launcher.ray_start import patient_node, start
from deployments.launcher.status_file import beat, say
from serve_app.errors import Unavailable

_HEALTHY = "RUNNING"
_HOPELESS = ("DEPLOY_FAILED", "UNHEALTHY")
DASHBOARD_SECONDS = 180.0
"""How long Ray's dashboard may fail to answer while the application is deployed."""
BEAT_SECONDS = 5.0


T = TypeVar("T")


class Stopped(BaseException):
    """This process was asked to stop."""


def _stop(signum: int, frame: FrameType | None) -> None:
    raise Stopped


def main(config_file: str, dashboard_port: str, metrics_port: str) -> None:
    """Run until SIGTERM."""
    signal.signal(signal.SIGTERM, _stop)
    become_subreaper()  # so that what a failed start of Ray leaves can be found
    config = json.loads(Path(config_file).read_text())
    try:
        _start_ray(int(dashboard_port), int(metrics_port))
        _deploy(config, f"http://{LOOPBACK}:{dashboard_port}")
        _watch_node()
    except Stopped:
        pass
    except Unavailable as error:
        say("failed", message=error.message, stage="ray")
    except Exception as error:
        traceback.print_exc()
        say("failed", message=str(error) or type(error).__name__)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _shut_down()


def _start_ray(dashboard_port: int, metrics_port: int) -> None:
    say("ray")

    def init() -> None:
        ray.init(
            address="local",
            include_dashboard=True,
            dashboard_host=LOOPBACK,
            dashboard_port=dashboard_port,
            log_to_driver=False,
            _node_ip_address=LOOPBACK,
            _metrics_export_port=metrics_port,
        )

    def clear() -> None:
        ray.shutdown()
        end_descendants(1.0)

    with patient_node():
        start(init, clear, lambda line: say("slow", message=line))


def _deploy(config: dict[str, Any], dashboard: str) -> None:
    """Deploy as `serve deploy` does, with Ray's client (it knows about Ray's token authentication)."""
    say("deploying")
    client = _patiently(lambda: ServeSubmissionClient(dashboard))
    _patiently(lambda: client.deploy_applications(config))
    name = config["applications"][0]["name"]
    while True:
        application = _patiently(client.get_serve_details, (OSError, RuntimeError))["applications"].get(name, {})
        if application.get("status") == _HEALTHY:
            return say("ready", ray_address=ray.get_runtime_context().gcs_address)
        if application.get("status") in _HOPELESS:
            message = application.get("message", "")
            print(message, file=sys.stderr)  # noqa: T201 - standard error is this process' log
            return say("failed", message=message)
        time.sleep(0.2)


def _patiently(ask: Callable[[], T], passing: tuple[type[Exception], ...] = (OSError,)) -> T:
    """Return what `ask` returns, asked again after `passing` errors; raises Unavailable when they do not pass."""
    began = time.monotonic()
    while True:
        try:
            return ask()
        except passing as error:
            waited = time.monotonic() - began
            if waited > DASHBOARD_SECONDS:
                raise Unavailable(
                    f"Ray's dashboard did not answer for {waited:.0f} s ({load()}): {str(error).splitlines()[0]}"
                ) from error
            time.sleep(1.0)


def _watch_node() -> None:
    """Beat for as long as Ray says that its node lives; tell when it does not."""
    while True:
        if not any(node["Alive"] for node in ray.nodes()):  # type: ignore[no-untyped-call]
            return say("lost", message="Ray has given up its node: the raylet did not answer for long.")
        beat()
        time.sleep(BEAT_SECONDS)


def _shut_down() -> None:
    if ray.is_initialized():
        from ray import serve

        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
