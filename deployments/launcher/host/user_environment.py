"""What of the user's environment reaches the server: everything but what would turn its own calls elsewhere.

Calls from process to process stay on loopback, so no proxy may be asked for them; a proxy stays in use for all else
(the Hugging Face Hub, S3). Variables that point Ray at another cluster, or change every Python, are left out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
_LONGEST_TEMPORARY = 60
LEFT_OUT = frozenset(
    {
        # Ray would join another cluster, run in another namespace, or with another job's configuration.
        "RAY_ADDRESS", "RAY_NAMESPACE", "RAY_CLIENT_MODE", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_RUNTIME_ENV_HOOK",
        "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT", "RAY_DASHBOARD_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_RAYLET_SOCKET_NAME",
        # Python would stop at a prompt, run a file first, or end at a warning of another package.
        "PYTHONINSPECT", "PYTHONSTARTUP", "PYTHONWARNINGS", "PYTHONHOME", "PYTHONEXECUTABLE", "PYTHONSAFEPATH",
    }
)  # fmt: skip


def inherited(environment: Mapping[str, str], home: Path, temporary: Path) -> dict[str, str]:
    """Return what the server's processes get of `environment`.

    home: where a user lives who has no home. temporary: the place of temporary files where the user's own cannot be.
    """
    kept = {name: value for name, value in environment.items() if name not in LEFT_OUT}
    kept |= {"PYTHONUTF8": "1", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    if not _has_home(environment):
        kept["HOME"] = str(home)
    if not _takes_sockets(environment.get("TMPDIR", "/tmp")):  # noqa: S108 - the system's own
        kept["TMPDIR"] = str(temporary)
    return kept | without_proxy(environment)


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """Return NO_PROXY in both spellings: what the user has in either, and this very machine."""
    told = ",".join(environment.get(name, "") for name in ("no_proxy", "NO_PROXY"))
    hosts = [host.strip() for host in told.split(",") if host.strip()]
    if "*" in hosts:  # for urllib only when it stands alone
        return {"no_proxy": "*", "NO_PROXY": "*"}
    joined = ",".join(dict.fromkeys([*hosts, *LOOPBACK_HOSTS]))
    return {"no_proxy": joined, "NO_PROXY": joined}


def _has_home(environment: Mapping[str, str]) -> bool:
    """Whether Ray can keep its token in the user's home."""
    try:
        home = Path(environment["HOME"]) if environment.get("HOME") else Path.home()
    except RuntimeError:
        return False
    return home.is_absolute() and os.access(home, os.W_OK | os.X_OK)


def _takes_sockets(folder: str) -> bool:
    """Whether Python's own processes (forkserver) can have their sockets in `folder`: 108 bytes with their names."""
    return len(os.fsencode(folder)) <= _LONGEST_TEMPORARY and os.access(folder, os.W_OK | os.X_OK)
