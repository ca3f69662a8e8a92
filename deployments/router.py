"""CacheRouter: the HTTP ingress and the typed handle, both over one VideoService. A thin shell.

The router is the ingress itself, so that a hit in its memory never makes another hop. Misses go through handles:
embeddings travel from TextEncoder to Diffusion by reference, and the render's events come back as a stream.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.metrics import replica_telemetry
from deployments.replica.expected_errors import expected_errors_in_one_line
from deployments.replica.freeze_gc import settle
from serve_app.api.access import own_names
from serve_app.api.api import build_api
from serve_app.clock import steady
from serve_app.core import Finished, Outcome, RenderEvent, RenderRequest, Rule, Urgency
from serve_app.errors import EncoreError, RenderFailed, ReplicaDied, Unavailable
from serve_app.schema import parse_request
from serve_app.service.queue import RenderQueue
from serve_app.service.render_cost import work_of
from serve_app.service.service import Answer
from serve_app.setting_names import names
from serve_app.settings import Settings
from serve_app.tasks import detached
from serve_app.wiring.router import open_service

logger = logging.getLogger("ray.serve")


class CacheRouter:
    """The four verbs `generate`, `explain`, `invalidate`, `stats` for handles, and the same service over HTTP."""

    def __init__(
        self, args: dict[str, Any], text_encoder: DeploymentHandle[Any], diffusion: DeploymentHandle[Any]
    ) -> None:
        expected_errors_in_one_line()
        self._settings = Settings(**args)
        self._service = open_service(
            self._settings, HandleRenderer(text_encoder, diffusion), ReplicaPeers(), replica_telemetry()
        )
        settle()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(
            self._service,
            max_body_bytes=self._settings.max_body_bytes,
            max_image_bytes=self._settings.max_image_bytes,
            slow_clients={
                "body_timeout": self._settings.client_body_timeout_seconds,
                "idle_timeout": self._settings.client_idle_timeout_seconds,
                "max_slow_bodies": self._settings.max_slow_bodies,
                "max_event_streams": self._settings.max_event_streams,
            },
            access={
                "hosts": (*own_names(), *names(self._settings.allowed_hosts)),
                "origins": names(self._settings.allowed_origins),
            },
        )

    async def generate(self, prompt: str, **fields: Any) -> Answer:
        """Return the finished video; `fields` as in POST /v1/videos. Raises EncoreError."""
        return await self._service.generate(parse_request({"prompt": prompt} | fields))

    async def explain(self, prompt: str, **fields: Any) -> dict[str, Any]:
        """Return the normalised prompt, the keys and which tier holds the video; renders nothing."""
        return await self._service.explain(parse_request({"prompt": prompt} | fields))

    async def invalidate(self, key: str) -> dict[str, Any]:
        """Delete the video of `key` from every tier."""
        return await self._service.invalidate(key)

    async def stats(self) -> dict[str, Any]:
        """Return the counts of one replica, `router` says which, and the sums over all."""
        return await self._service.stats()

    def counts(self) -> dict[str, Any]:
        """Return what this replica alone has counted; its peers add it up."""
        return self._service.counts()

    def forget(self, keys: tuple[str, ...], job_ids: tuple[str, ...]) -> None:
        """Drop videos and jobs from this replica's memory; its peers call it."""
        self._service.forget(keys, job_ids)

    def learn(self, rules: tuple[Rule, ...]) -> None:
        """Take in invalidations; its peers call it."""
        self._service.learn(rules)

    async def __del__(self) -> None:
        await self._service.aclose()


class HandleRenderer:
    """serve_app's Renderer over the deployments TextEncoder and Diffusion.

    Replicas of Diffusion take two batches each (`max_ongoing_requests`); Serve's own queue in front of them knows no
    priorities, so this router lets one request at a time into it, and all others wait in the queue.
    """

    def __init__(self, text_encoder: DeploymentHandle[Any], diffusion: DeploymentHandle[Any]) -> None:
        self._text_encoder = text_encoder
        self._diffusion = diffusion
        self._queue = RenderQueue()
        self._work: dict[str, float] = {}
        self._seconds_per_work = 0.0

    async def render(self, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        """Yield the render's events; Unavailable when its replica died or left, which is worth asking again."""
        try:
            async for event in self._asked(request):
                yield event
        except (RayTaskError, RayActorError, RayServeException) as error:
            raise _as_failure(error) from error

    async def _asked(self, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        keys, spec = request.keys, request.spec
        embeds = self._text_encoder.embed.remote(
            (keys.prompt, keys.negative_prompt), (spec.prompt, spec.negative_prompt), request.origin
        )
        self._work[keys.video] = work_of(spec)
        try:
            async with self._queue.turn(
                keys.video,
                request.asked_at or steady(),
                priority=request.urgency.priority,
                deadline=request.urgency.deadline,
                work=self._work[keys.video],
            ) as turn:
                stream: Any = self._diffusion.options(stream=True).render.remote(request, embeds)
                async for event in stream:
                    self._queue.taken(turn)
                    if isinstance(event, Finished) and event.outcome is Outcome.RENDERED:
                        self._learn(keys.video, event.render_seconds)
                    yield event
        finally:
            self._work.pop(keys.video, None)

    def _learn(self, key: str, render_seconds: float) -> None:
        measured = render_seconds / self._work[key]
        self._seconds_per_work += (0.2 if self._seconds_per_work else 1.0) * (measured - self._seconds_per_work)
        self._queue.reckon(self._seconds_per_work)

    async def cancel(self, key: str) -> None:
        """End the render of `key` on whichever replica runs it."""
        await self._diffusion.broadcast("cancel", key).results_async()

    async def drop_latents(self, key: str) -> None:
        """Have every replica delete latents; one that is starting or dying writes none."""
        try:
            await self._diffusion.broadcast("drop_latents", key).results_async()
        except (RayActorError, RayTaskError, RayServeException):
            logger.exception("not every replica could be told to drop latents")

    def promote(self, key: str, urgency: Urgency) -> None:
        """Move the render of `key` forward, here or on the replica that has it."""
        if not self._queue.promote(key, steady(), urgency.priority, urgency.deadline):
            detached(self._promote_there(key, urgency))

    async def _promote_there(self, key: str, urgency: Urgency) -> None:
        try:
            await self._diffusion.broadcast("promote", key, urgency).results_async()
        except (RayActorError, RayTaskError, RayServeException):
            logger.exception("a render could not be told to hurry")

    async def stats(self) -> dict[str, Any]:
        """Return what waits in this router's queue, and the load of all Diffusion replicas, in sum and each.

        A broadcast does not queue behind renders, as a call to a busy replica would.
        """
        try:
            engines: list[dict[str, Any]] = await self._diffusion.broadcast("stats").results_async()
        except (RayActorError, RayTaskError, RayServeException) as error:
            return {"waiting": len(self._queue), "error": type(error).__name__}
        sums = {name: sum(engine[name] for engine in engines) for name in _SUMMED}
        invariant = all(engine["batch_invariant"] for engine in engines) if engines else None
        return {
            "waiting": len(self._queue),
            "replicas": len(engines),
            **sums,
            "batch_invariant": invariant,
            "engines": engines,
        }


_SUMMED = ("queued", "running", "decoding", "backlog_steps", "backlog_seconds", "steps_done", "passes")


class ReplicaPeers:
    """All replicas of this deployment, this one too."""

    async def forget(self, keys: tuple[str, ...], job_ids: tuple[str, ...]) -> None:
        """Make every replica forget; one that is just starting or dying has nothing to forget."""
        await self._broadcast("forget", keys, job_ids)

    async def learn(self, rules: tuple[Rule, ...]) -> None:
        """Tell every replica of invalidations; one that is just starting or dying reads them by itself."""
        await self._broadcast("learn", rules)

    async def counts(self) -> tuple[str, list[dict[str, Any]]]:
        """Return this replica's name and all replicas' counts; none while one of them is starting or dying."""
        context = serve.get_replica_context()
        return str(context.replica_id.unique_id), await self._broadcast("counts")

    async def _broadcast(self, method: str, *args: Any) -> list[Any]:
        context = serve.get_replica_context()
        handle = serve.get_deployment_handle(context.deployment, app_name=context.app_name)
        try:
            return list(await handle.broadcast(method, *args).results_async())
        except (RayActorError, RayServeException):
            logger.exception("not every replica could be told to %s", method)
            return []


def _as_failure(error: Exception) -> EncoreError:
    """Map what a handle raises; a replica that died is ReplicaDied, which is worth asking again."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, EncoreError):
        return cause
    if isinstance(cause, BackPressureError):
        return Unavailable("The renderer is overloaded.", retry_after=5)
    if isinstance(cause, RayActorError | RayServeException):
        return ReplicaDied("The renderer died while it worked on this video.", retry_after=1)
    logger.error("the renderer failed: %s", error)
    return RenderFailed(f"The render failed: {type(cause).__name__}.")
