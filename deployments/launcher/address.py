"""Where a running server's Ray is: written to its cache folder when it is ready, read by `deployments.connect`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote

from deployments.launcher.host.private_files import open_private
from deployments.launcher.host.user_environment import without_proxy
from serve_app.errors import Unavailable

_FILE = "address.json"


@dataclass(frozen=True, slots=True)
class Address:
    """Ray's address for drivers, its dashboard, and the file of the token that both ask for (empty: they ask none)."""

    ray: str
    dashboard: str
    token_file: str

    @classmethod
    def of(cls, ray: str, dashboard: str) -> Address:
        """Return the address of a Ray that was started under this process' environment."""
        asks = os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"
        token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
        return cls(ray, dashboard, str(token) if asks else "")

    def write(self, run: Path) -> None:
        """Tell it in the folder of the running server; the folder is gone when the server is."""
        with open_private(run / _FILE, "w") as file:
            json.dump(asdict(self), file)

    def variables(self) -> str:
        """Return what Ray's command line and drivers need in their environment, as words of a shell."""
        told = {
            "RAY_ADDRESS": self.ray,
            "RAY_DASHBOARD_ADDRESS": self.dashboard,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else 127.0.0.1 is taken for the machine's outer address
            "RAY_AUTH_MODE": "token" if self.token_file else "disabled",
        }
        if any(name.lower() in ("http_proxy", "all_proxy") for name in os.environ):
            told |= without_proxy(os.environ)
        return " ".join(f"{name}={quote(value)}" for name, value in told.items())

    @classmethod
    def read(cls, cache_dir: Path) -> Address:
        """Return the address of the server on `cache_dir`; raises Unavailable when none is ready there."""
        try:
            return cls(**json.loads((cache_dir / "run" / _FILE).read_text("utf-8")))
        except FileNotFoundError:
            pass
        raise Unavailable(
            f"No Encore server is ready on the cache folder {cache_dir}. Start one with `encore serve`, name its "
            "folder by ENCORE_CACHE_DIR, or set RAY_ADDRESS to the cluster's address."
        )
