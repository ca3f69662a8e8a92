"""Invalidation as the service tells it: what was chosen becomes rules, and what can be deleted at once is.

A rule holds on this router when it was recorded, on the others when its message, the broadcast or their next look
brings it. A key's video is deleted from all tiers before the answer, and with it the latents it would come back from;
what a wider choice covers counts as not there at once and is deleted by the sweep.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from serve_app.cache.cache import TieredCache
from serve_app.cache.invalidation.rules import MICROSECONDS
from serve_app.cache.invalidation.sweep import RuleSweeper
from serve_app.cache.invalidation.sync import RuleSync
from serve_app.core import Entry, Keys, Rule, Selector, VideoSpec
from serve_app.errors import NotFound
from serve_app.flight.renderer import Renderer
from serve_app.schema.invalidation import InvalidationRequest
from serve_app.service.peers import Peers
from serve_app.service.plan import KEPT_CHARS, Plan, Planner


@dataclass(frozen=True, slots=True)
class Invalidation:
    """What was done: the choice, up to when (Unix seconds), since which epoch, and how much was deleted where.

    deleted: so far, by tier; `l1` is the memory of the router that answers. known: whether there is such a thing: a
    tier had the key, a fingerprint is one that this server makes videos by; None: not known.
    """

    selector: Selector
    before: float
    epoch: int
    deleted: dict[str, int]
    known: bool | None = None

    def wire(self) -> dict[str, Any]:
        """Return the JSON-able answer."""
        return {
            "rule": {"selector": self.selector, "before": self.before},
            "epoch": self.epoch,
            "deleted": self.deleted,
            "known": self.known,
        }


class Invalidator:
    """The invalidations of one router; `sweeper` deletes behind the answer, None where nothing is shared."""

    def __init__(
        self,
        sync: RuleSync,
        planner: Planner,
        cache: TieredCache,
        renderer: Renderer,
        peers: Peers,
        *,
        latents: TieredCache | None = None,
        sweeper: RuleSweeper | None = None,
    ) -> None:
        self._sync = sync
        self._labels = sync.book.labels
        self._planner = planner
        self._cache = cache
        self._renderer = renderer
        self._peers = peers
        self._latents = latents
        self._sweeper = sweeper

    def start(self) -> None:
        """Begin to hear of others' invalidations, and to sweep, on the running event loop."""
        self._sync.start()
        if self._sweeper is not None:
            self._sweeper.start()

    def labels(self, plan: Plan) -> tuple[str, ...]:
        """Return what the video of `plan` may be chosen by."""
        return self.labels_of(plan.spec, plan.keys, plan.tags)

    def labels_of(self, spec: VideoSpec, keys: Keys, tags: Iterable[str]) -> tuple[str, ...]:
        """Return what a video may be chosen by."""
        return self._labels.of_video(keys.video, spec.prompt, spec.model, self._planner.fingerprints, tags)

    def asked(self, plan: Plan, entry: Entry | None) -> None:
        """Note that a video was asked for with tags, unless it is there already and says so itself."""
        if not plan.tags:
            return
        known = () if entry is None else entry.meta.get("labels", ())
        tags = [tag for tag in (self._labels.of("tag", each) for each in plan.tags) if tag not in known]
        self._sync.note(self._labels.of("key", plan.keys.video), tags)

    async def invalidate(self, request: InvalidationRequest) -> Invalidation:
        """Do what `request` says; raises Unprocessable for its prompt, NotFound for its model, Unavailable."""
        if request.key is not None:
            return await self.key(request.key)
        selector, labels, age = await self._chosen(request)
        before = self._cache.invalidated
        rules = await self._sync.add(selector, labels, older_than=age)
        await self._peers.learn(rules)
        known = None if request.fingerprint is None else request.fingerprint in self._planner.fingerprints
        return self._told(selector, rules, {"l1": self._cache.invalidated - before}, known)

    async def key(self, key: str) -> Invalidation:
        """Invalidate one video; raises Unavailable when that can be recorded nowhere."""
        in_l1 = self._cache.contains_now(key)
        latents = await self._latents_of(key)
        labels = [self._labels.of("key", key)]
        labels += [self._labels.of_value("latents", each) for each in latents]
        rules = await self._sync.add("key", labels)
        await self._drop_latents(latents)
        deleted = dict.fromkeys(await self._cache.delete(key), 1)
        await self._peers.learn(rules)
        deleted = ({"l1": 1} if in_l1 else {}) | deleted
        return self._told("key", rules, deleted, bool(deleted))

    def stats(self) -> dict[str, Any]:
        """Return what rules there are and how far the sweep is."""
        return {"rules": len(self._sync.book)} if self._sweeper is None else self._sweeper.stats()

    async def aclose(self) -> None:
        """End hearing and sweeping."""
        if self._sweeper is not None:
            await self._sweeper.aclose()
        await self._sync.aclose()

    async def _chosen(self, request: InvalidationRequest) -> tuple[Selector, list[str], float]:
        of = self._labels.of
        if request.prompt is not None:
            model = () if request.model is None else (self._model(request.model),)
            forms = await self._forms(request.prompt)
            return "prompt", [of("prompt", form, *model) for form in sorted(forms)], 0.0
        if request.model is not None:
            return "model", [of("model", self._model(request.model))], 0.0
        if request.fingerprint is not None:
            return "fingerprint", [of("fingerprint", request.fingerprint)], 0.0
        if request.tag is not None:
            return "tag", [of("tag", request.tag)], 0.0
        return "everything", [of("everything")], request.older_than_seconds or 0.0

    def _model(self, model: str) -> str:
        try:
            return self._planner.model(model)
        except NotFound as error:
            raise NotFound(
                f"{error.message} What a former model made is chosen by its 'fingerprint'.", param="model"
            ) from None

    async def _forms(self, prompt: str) -> frozenset[str]:
        if len(prompt) <= KEPT_CHARS:
            return self._planner.prompt_forms(prompt)
        return await asyncio.to_thread(self._planner.prompt_forms, prompt)

    def _told(
        self, selector: Selector, rules: Iterable[Rule], deleted: dict[str, int], known: bool | None
    ) -> Invalidation:
        before = max(rule.before for rule in rules)
        return Invalidation(selector, before / MICROSECONDS, self._sync.epoch, deleted, known)

    async def _latents_of(self, key: str) -> tuple[str, ...]:
        """Return the key of what the video was decoded from; without the video it is not known."""
        found = None if self._latents is None else await self._cache.get(key)
        told = None if found is None else found[0].meta.get("latents")
        try:
            return (self._cache.unmasked(key, told),) if isinstance(told, str) else ()
        except ValueError:
            return ()

    async def _drop_latents(self, keys: Iterable[str]) -> None:
        """Delete latents, those too that are just being written."""
        for key in keys:
            await self._renderer.drop_latents(key)
            if self._latents is not None:
                await self._latents.delete(key)  # there may be no renderer just now
