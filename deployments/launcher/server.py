"""The Ray driver: a child process of the launcher that starts Ray, deploys one config, and undoes both on SIGTERM.

    python -m deployments.launcher.server CONFIG.json DASHBOARD_PORT METRICS_PORT

Deploying goes through Ray's REST API, the same door as `serve deploy` in production, so the local server exercises
what the cluster runs. It prints one JSON line per event: {"state": "ray" | "deploying" | "ready" | "failed", ...}.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from deployments.launcher.ports import LOOPBACK
from deployments.launcher.talk import say

_HEALTHY = "RUNNING"
_HOPELESS = ("DEPLOY_FAILED", "UNHEALTHY")


class Stopped(BaseException):
    """Somebody asked this process to stop."""


def _stop(signum: int, frame: FrameType | None) -> None:
    raise Stopped


def main(config_file: str, dashboard_port: str, metrics_port: str) -> None:
    """Run until SIGTERM."""
    signal.signal(signal.SIGTERM, _stop)
    config = json.loads(Path(config_file).read_text())
    try:
        _start_ray(int(dashboard_port), int(metrics_port))
        _deploy(config, f"http://{LOOPBACK}:{dashboard_port}")
        signal.pause()
    except Stopped:
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _shut_down()


def _start_ray(dashboard_port: int, metrics_port: int) -> None:
    say("ray")
    ray.init(
        address="local",
        include_dashboard=True,
        dashboard_host=LOOPBACK,
        dashboard_port=dashboard_port,
        log_to_driver=False,
        _node_ip_address=LOOPBACK,
        _metrics_export_port=metrics_port,
    )


def _deploy(config: dict[str, Any], dashboard: str) -> None:
    """Deploy as `serve deploy` does, with Ray's client (it knows about Ray's token authentication)."""
    say("deploying")
    client = ServeSubmissionClient(dashboard)
    client.deploy_applications(config)
    name = config["applications"][0]["name"]
    while True:
        application = client.get_serve_details()["applications"].get(name, {})
        if application.get("status") == _HEALTHY:
            return say("ready", ray_address=ray.get_runtime_context().gcs_address)
        if application.get("status") in _HOPELESS:
            message = application.get("message", "")
            print(message, file=sys.stderr)  # noqa: T201 - standard error is this process' log
            return say("failed", message=message)
        time.sleep(0.2)


def _shut_down() -> None:
    if ray.is_initialized():
        from ray import serve

        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
