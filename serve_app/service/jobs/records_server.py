"""Whether a Redis may hold what was accepted: it must not evict what has no TTL, and it should survive a restart.

`allkeys-*` evicts job records under pressure, so it is refused, with the line to change. A server that forbids CONFIG
(managed ones do) gets a warning, and so does one that keeps nothing on disk. One that cannot be asked at the start is
asked again once it answers; until then nothing is known against it.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import ResponseError

from serve_app.cache.redis.cluster import ClusterAddress, is_cluster
from serve_app.cache.redis.redis import RedisTier
from serve_app.errors import InvalidRequest, TierError

logger = logging.getLogger(__name__)

_ASKED = ("maxmemory-policy", "appendonly", "save")
_FIRST_EVICTED = {
    "volatile-ttl": "it evicts what ends soonest first, renders under way before videos",
    "volatile-random": "it may evict renders under way before videos",
}


@dataclass(frozen=True, slots=True)
class Findings:
    """What a look at a server found: why it may not hold records, and what an operator should know."""

    refusal: str | None = None
    warnings: tuple[str, ...] = ()


def judged(config: dict[str, str] | None, setting: str, reported: str = "") -> Findings:
    """Return what a server's configuration means for records; None: it forbids to be asked.

    setting: the setting that named it. reported: the policy that INFO tells.
    """
    if config is None:
        told = f"; it reports {reported}" if reported else ""
        return Findings(warnings=(
            f"The server of job records ({setting}) forbids CONFIG{told}. See to it that its maxmemory-policy is "
            "noeviction or one of volatile-*, and that it is persistent: with allkeys-* accepted jobs can be evicted.",
        ))  # fmt: skip
    policy = config.get("maxmemory-policy", "noeviction")
    if policy.startswith("allkeys"):
        return Findings(
            f"The server of job records ({setting}) has maxmemory-policy {policy}, which evicts accepted jobs. Run "
            "`redis-cli CONFIG SET maxmemory-policy volatile-lru` and put `maxmemory-policy volatile-lru` into its "
            "redis.conf, or give records a server of their own: setting jobs_url, with `maxmemory-policy noeviction`."
        )
    warnings = []
    if config.get("appendonly") == "no" and not config.get("save"):
        warnings.append(
            f"The server of job records ({setting}) keeps nothing on disk: accepted jobs are lost when it restarts. "
            "Put `appendonly yes` into its redis.conf."
        )
    if policy in _FIRST_EVICTED:
        warnings.append(
            f"The server of job records ({setting}) has maxmemory-policy {policy}: {_FIRST_EVICTED[policy]}, which may "
            "then be rendered twice. volatile-lru is better."
        )
    return Findings(warnings=tuple(warnings))


class RecordsServer:
    """What is known of the server at `url`, which the setting `setting` names; `refusal` is why it takes no jobs."""

    def __init__(self, url: str, setting: str, timeout: float) -> None:
        self.refusal: str | None = None
        self._url = url
        self._setting = setting
        self._timeout = timeout
        self._known = False
        self._warned: set[str] = set()

    def check_at_start(self) -> None:
        """Ask the server, from any thread; raises InvalidRequest for one that must not hold records."""

        async def ask() -> None:
            tier = RedisTier(self._url, connect_timeout=self._timeout, socket_timeout=self._timeout)
            try:
                await self.check(tier)
            finally:
                await tier.client.aclose()

        with ThreadPoolExecutor(1) as thread:  # there may be a running loop in this one
            thread.submit(asyncio.run, ask()).result()
        if self.refusal is not None:
            raise InvalidRequest(self.refusal, param=self._setting)

    async def check(self, redis: RedisTier) -> None:
        """Ask the server if nothing is known of it yet, or it was refused; one that does not answer stays unknown.

        While its circuit is open it is not asked.
        """
        if self._known and self.refusal is None:
            return
        try:
            with redis.circuit.attempt():
                found = await redis.ask(self._find)
        except TierError as error:
            logger.debug("the server of job records: %s", error)
            return
        self._known = True
        if found.refusal is not None and self.refusal is None:
            logger.error("%s", found.refusal)
        self.refusal = found.refusal
        for warning in found.warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                logger.warning("%s", warning)

    async def _find(self, client: Redis | RedisCluster) -> Findings:
        if isinstance(client, Redis):
            return await self._find_in(client)
        await client.initialize()
        found = []
        for node in client.get_primaries():
            each = ClusterAddress.parse(self._url).connect_to(str(node.host), int(node.port))
            try:
                found.append(await self._find_in(each))
            finally:
                await each.aclose()
        refused = next((each.refusal for each in found if each.refusal is not None), None)
        return Findings(refused, tuple(dict.fromkeys(text for each in found for text in each.warnings)))

    async def _find_in(self, client: Redis) -> Findings:
        try:
            found = [await client.config_get(name) for name in _ASKED]  # one by one: Redis 6 takes no more
        except ResponseError:
            return judged(None, self._setting, await _reported(client))
        return judged({str(name): str(value) for each in found for name, value in each.items()}, self._setting)


async def _reported(client: Redis) -> str:
    try:
        return str((await client.info("memory")).get("maxmemory_policy", ""))
    except ResponseError:
        return ""


def same_server(one: str, other: str) -> bool:
    """Tell whether two URLs name servers of one memory: of the same place, whatever database and login they say."""
    return bool(_places(one) & _places(other))


def _places(url: str) -> set[tuple[str, int]]:
    if is_cluster(url):
        return set(ClusterAddress.parse(url).nodes)
    parts = urlsplit(url)
    return {(parts.path, 0)} if parts.scheme == "unix" else {(parts.hostname or "localhost", parts.port or 6379)}
