"""`encore gc`, `fsck` and `reindex`: they look after the L3 that a server on this machine would use, or is using.

That is the one of ENCORE_L3_URL, else the folder `l3` in the server's cache folder, as the launcher chooses. They take
no lock: beside a running server they take turns with it as its own processes do. None touches a store before it is sure
that the secret at hand is the store's, and without a secret nothing is removed or repaired.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast
from urllib.parse import urlsplit

import typer

from serve_app.cache.objects.folder import FolderStore
from serve_app.cache.objects.folder_maintenance import FolderMaintenance
from serve_app.cache.objects.folder_rows import Gone
from serve_app.cache.objects.maintenance import Checked, Collected, Maintenance, Show, check
from serve_app.cache.store import open_store
from serve_app.cache.store_secret import require_own
from serve_app.cli.output.progress import bars
from serve_app.cli.serve import absolute, default_cache_dir, read_settings
from serve_app.errors import InvalidRequest, NotFound
from serve_app.settings import UNSET_SECRET
from serve_app.urls import path_of, quoted_path

if TYPE_CHECKING:
    from serve_app.cache.objects.s3 import S3Store

T = TypeVar("T")
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Configured:
    """The L3 of a server: its URL, the secret that names in it are made under (None: not known), and its bound."""

    url: str
    secret: bytes | None
    max_bytes: int | None
    endpoint_url: str | None
    redirects: bool


def collect(
    cache_dir: Path | None, *, max_bytes: int | None, empty_quarantine: float | None, dry_run: bool, as_json: bool
) -> None:
    """Remove what is too much, or tell what would go; raises NotFound without a store, ForeignStore, TierError."""
    configured = _configured(cache_dir)
    bound = configured.max_bytes if max_bytes is None else max_bytes

    async def work(upkeep: Maintenance, show: Show) -> Collected:
        found = await upkeep.collect(bound, dry_run=dry_run, show=show)
        emptied = Gone()
        if empty_quarantine is not None:
            emptied = await upkeep.empty_quarantine(empty_quarantine, dry_run=dry_run)
        return replace(found, quarantine=await upkeep.quarantined(), emptied=emptied)

    found = _run(configured, work, removes=not dry_run)
    if as_json:
        told = {"values": found.values, "bytes": found.bytes, "max_bytes": bound, "dry_run": dry_run}
        parts = ("evicted", "leftovers", "quarantine", "emptied")
        typer.echo(json.dumps(told | {part: asdict(getattr(found, part)) for part in parts}))
        return
    would = "would be " if dry_run else ""
    typer.echo(f"{found.evicted.count:,} values ({_mib(found.evicted.bytes)}) {would}evicted")
    typer.echo(f"{found.leftovers.count:,} leftovers ({_mib(found.leftovers.bytes)}) {would}removed")
    if found.emptied.count:
        typer.echo(f"{found.emptied.count:,} values in quarantine ({_mib(found.emptied.bytes)}) {would}deleted")
    if found.quarantine.count:
        typer.echo(
            f"{found.quarantine.count:,} values ({_mib(found.quarantine.bytes)}) lie in quarantine; --empty-quarantine "
            "DAYS deletes what has been there for longer"
        )
    there = "there are" if dry_run else "there are now"
    bounded = "no bound" if bound is None else f"the bound is {_mib(bound)}"
    typer.echo(f"{there} {found.values:,} values ({_mib(found.bytes)}); {bounded}")


def verify(cache_dir: Path | None, *, repair: bool, yes: bool, as_json: bool) -> bool:
    """Verify everything and tell what is wrong; False when something is that was not put right."""
    configured = _configured(cache_dir)

    def confirm(bad: int, of: int) -> bool:
        return yes or _asked(f"{bad:,} of {of:,} values do not verify. Move all of them to the quarantine?")

    async def work(upkeep: Maintenance, show: Show) -> Checked:
        return await check(upkeep, configured.secret, repair=repair, show=show, confirm=confirm)

    found = _run(configured, work, removes=repair)
    if as_json:
        problems = [asdict(problem) | {"repaired": problem.action != ""} for problem in found.problems]
        names = "unknown" if configured.secret is None else "verified"
        told = {"values": found.values, "former": found.former, "names": names, "problems": problems}
        typer.echo(json.dumps(told))
    else:
        for problem in found.problems:
            typer.echo(f"{problem.where}: {problem.what}{f' ({problem.action})' if problem.action else ''}")
        typer.echo(f"{found.values:,} values verified, {len(found.problems):,} problems")
        if found.former:
            typer.echo(f"{found.former:,} values are of a former release: not read any more, overwritten by new ones")
        if configured.secret is None:
            typer.echo("encore: without ENCORE_SECRET names were not held against keys", err=True)
    if found.declined:
        typer.echo(
            "encore: so many values do not verify that nothing was repaired: is this the right store and secret "
            "(ENCORE_L3_URL, ENCORE_SECRET, --cache-dir)? --yes moves them to the quarantine all the same",
            err=True,
        )
    return all(problem.action for problem in found.problems)


def rebuild(cache_dir: Path | None, *, as_json: bool) -> None:
    """Make the index anew; raises InvalidRequest for a store that has none."""
    count = _run(_configured(cache_dir), lambda upkeep, show: upkeep.reindex(show), removes=True)
    if count is None:
        raise InvalidRequest("An S3 store has no index: its objects tell what they are.")
    typer.echo(json.dumps({"values": count}) if as_json else f"{count:,} values indexed")


def _asked(question: str) -> bool:
    """Ask a person; no where there is none."""
    return sys.stdin.isatty() and sys.stderr.isatty() and typer.confirm(question, err=True)


def _run(configured: Configured, work: Callable[[Maintenance, Show], Awaitable[T]], *, removes: bool) -> T:
    """Do `work` on a store that is ours; raises InvalidRequest when it `removes` and nobody knows whose it is."""

    async def run() -> T:
        upkeep = _opened(configured)
        try:
            if removes and configured.secret is None:
                raise InvalidRequest(
                    "Without the store's secret nothing is removed or repaired: set ENCORE_SECRET, or --cache-dir to "
                    "the cache folder whose `secret` it was written under."
                )
            if configured.secret is not None:
                await require_own(upkeep.store, configured.secret, write=removes)
            with bars() as shown:
                return await work(upkeep, shown.show)
        finally:
            await upkeep.store.aclose()

    return asyncio.run(run())


def _opened(configured: Configured) -> Maintenance:
    parts = urlsplit(configured.url)
    if parts.scheme == "file" and not (path_of(configured.url) / "objects").is_dir():
        raise NotFound(f"There is no store at {path_of(configured.url)}; see --cache-dir and ENCORE_L3_URL.")
    try:
        store = open_store(
            configured.url,
            endpoint_url=configured.endpoint_url,
            plain_secret=configured.secret if configured.redirects else None,
            sweep=False,
        )
    except ValueError as error:
        raise InvalidRequest(f"ENCORE_L3_URL: {error}.") from error
    if isinstance(store, FolderStore):
        return FolderMaintenance(store)
    from serve_app.cache.objects.s3_maintenance import (
        S3Maintenance,
    )  # half a second of imports that a folder does not need

    return S3Maintenance(cast("S3Store", store))


def _configured(cache_dir: Path | None) -> Configured:
    settings = read_settings({})
    folder = absolute(cache_dir or default_cache_dir(os.environ))
    url = settings.l3_url or f"file://{quoted_path(folder / 'l3')}"
    bounded = url.startswith("file:") or "l3_max_bytes" in settings.model_fields_set
    return Configured(
        url=url,
        secret=_secret(folder) if settings.secret.get_secret_value() == UNSET_SECRET else settings.secret_bytes,
        max_bytes=settings.l3_max_bytes if bounded else None,
        endpoint_url=settings.s3_endpoint_url,
        redirects=settings.s3_redirect,
    )


def _secret(folder: Path) -> bytes | None:
    """Return the secret that the launcher made in its cache folder, None when it has made none."""
    with suppress(OSError):
        return (folder / "secret").read_text().strip().encode() or None
    return None


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f} MiB"
