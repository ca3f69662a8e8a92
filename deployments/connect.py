"""A handle of a running server for any Python program: beside `encore serve`, or in a Ray cluster that serves Encore.

    from deployments.connect import connect

    answer = connect().generate.remote("a small red circle moves left", seed=7).result()

In a program with an event loop the same call is awaited instead of `.result()`. The program becomes a driver of the
server's Ray, so it must run the same versions of Python, Ray and Encore.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray._private import ray_constants
from ray._raylet import Config  # type: ignore[attr-defined]  # compiled
from ray.serve.handle import DeploymentHandle

from deployments.launcher.address import Address
from deployments.launcher.host.user_environment import without_proxy
from serve_app.cli.serve import default_cache_dir


def connect(cache_dir: str | Path | None = None, *, app: str = "encore") -> DeploymentHandle[Any]:
    """Return the handle of the application `app`.

    A process that belongs to a Ray cluster already keeps it. Others connect to the environment's RAY_ADDRESS, else to
    the server that runs on `cache_dir` (absent: ENCORE_CACHE_DIR, else the default folder). Raises Unavailable when no
    server is ready there.
    """
    if not ray.is_initialized():
        ray.init(
            address=os.environ.get("RAY_ADDRESS") or _beside(cache_dir),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    return serve.get_app_handle(app)


def _beside(cache_dir: str | Path | None) -> str:
    """Return the address of a server on this machine, having told Ray what its clients need to know."""
    folder = cache_dir or os.environ.get("ENCORE_CACHE_DIR") or default_cache_dir(os.environ)
    address = Address.read(Path(folder).expanduser())
    os.environ.update(without_proxy(os.environ))
    # Else Ray takes 127.0.0.1 for a name of the machine's outer address, where a local server does not listen.
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    if address.token_file:
        os.environ.setdefault("RAY_AUTH_TOKEN_PATH", address.token_file)
    os.environ["RAY_AUTH_MODE"] = "token" if address.token_file else "disabled"
    Config.initialize("")  # Ray read the environment when it was imported
    return address.ray
