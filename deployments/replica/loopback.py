"""Keep a local server's replicas on loopback, where Ray has no setting for it.

Ray Serve 2.60 starts a gRPC server for pickled calls in every replica and binds it to all addresses, whatever
`http_options.host` says (`ray/serve/_private/replica.py`, `_on_initialized`). Encore does not use it, and a machine's
neighbours must not either, so under the launcher its address is rewritten. tests/deployments/test_launcher.py looks at
every listening socket, so a Ray release that changes this is noticed.
"""

from __future__ import annotations

import os
from typing import Any

VARIABLE = "ENCORE_LOOPBACK_ONLY"


def keep_replicas_on_loopback() -> None:
    """Make the replicas of this process bind 127.0.0.1, if the launcher asked for it by environment."""
    if os.environ.get(VARIABLE) != "1":
        return
    from ray.serve._private import replica as module

    replica: Any = module
    bind = replica.add_port_to_grpc_server

    def on_loopback(server: Any, address: str) -> Any:
        return bind(server, address.replace("[::]", "127.0.0.1"))

    replica.add_port_to_grpc_server = on_loopback
