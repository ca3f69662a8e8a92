"""A Redis cluster as the client that L2 and job records use: `redis+cluster://[USER:PASSWORD@]HOST:PORT[,HOST:PORT...]`.

The nodes of the address are only where to ask for the others; with `rediss+cluster` connections are encrypted.
Parameters after a `?` are redis-py's own, as in addresses of single servers (`ssl_ca_certs`, `socket_timeout`). Retries
are off as everywhere: a node that is gone is asked once, then the map of slots is read again, and until another node
has its slots, its keys are misses while all others are found.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from inspect import signature
from typing import Any
from urllib.parse import unquote, urlsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

SCHEMES = ("redis+cluster", "rediss+cluster")
_PORT = 6379


@dataclass(frozen=True, slots=True)
class ClusterAddress:
    """Where a cluster can be asked for its nodes, and how to log in."""

    nodes: tuple[tuple[str, int], ...]
    options: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> ClusterAddress:
        """Read an address; raises ValueError for one without hosts or with a port that is no number."""
        parts = urlsplit(url)
        login, _, hosts = parts.netloc.rpartition("@")
        user, _, password = login.partition(":")
        nodes = tuple(_node(host) for host in hosts.split(",") if host)
        if parts.scheme not in SCHEMES or not nodes or parts.path not in ("", "/", "/0"):
            raise ValueError("a Redis cluster is redis+cluster://HOST:PORT[,HOST:PORT...]; it has only database 0")
        options: dict[str, Any] = {"username": unquote(user) or None, "password": unquote(password) or None}
        options |= _parameters(parts.query)
        return cls(nodes, options | ({"ssl": True} if parts.scheme == "rediss+cluster" else {}))

    def connect(self, **options: Any) -> RedisCluster:
        """Return a client of the cluster; nothing is asked yet."""
        return _Cluster(
            startup_nodes=[ClusterNode(host, port) for host, port in self.nodes],
            require_full_coverage=False,  # a node that is gone must not take the others with it
            retry=Retry(NoBackoff(), 1),  # once more after the map of slots was read again: a key may have moved
            **options | self.options,
        )

    def connect_to(self, host: str, port: int, **options: Any) -> Redis:
        """Return a client of one node alone."""
        of_one = {name: value for name, value in self.options.items() if name in signature(Redis).parameters}
        return Redis(host=host, port=port, **options | of_one)

    def connect_any(self, cluster: RedisCluster, **options: Any) -> Redis:
        """Return a client of one node, for messages: what is published anywhere in a cluster reaches all nodes."""
        known = [(str(node.host), int(node.port)) for node in cluster.get_nodes()] or list(self.nodes)
        host, port = random.choice(known)  # noqa: S311 - so that a node that is gone is not asked for ever
        return self.connect_to(host, port, **options)


class _Cluster(RedisCluster):
    """redis-py's client (8.1), that knows where keys are before it sends anything.

    One that was not asked before sends scripts to any node; a handful of such redirections at once and it closes
    connections that are in use.
    """

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """Run one command on the node that has its keys; raises RedisError."""
        await self.initialize()
        return await super().execute_command(*args, **kwargs)

    async def aclose(self) -> None:
        """Close all connections, those too that redis-py leaves open after an error."""
        await super().aclose()
        await self.nodes_manager.aclose()
        await self.nodes_manager.aclose("startup_nodes")


def is_cluster(url: str) -> bool:
    """Tell whether an address names a cluster."""
    return urlsplit(url).scheme in SCHEMES


def _parameters(query: str) -> dict[str, Any]:
    """Return a query's parameters with redis-py's types; raises ValueError for a value that is none."""
    told = dict(parse_url(f"redis://?{query}"))
    if told.pop("db", 0):
        raise ValueError("a Redis cluster has only database 0")
    return told


def _node(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):  # an IPv6 address without a port ends in a bracket
        return text.strip("[]"), _PORT
    if not port.isdigit():
        raise ValueError("a port of a Redis node is a number")  # not which text: a password may be misplaced
    return host.strip("[]"), int(port)
