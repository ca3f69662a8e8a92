"""The application: four deployments bound to each other, from one Settings.

`serve run deployments.app:build`, a config in `deployments/config/`, and the launcher all come here. The options given
here are what the code itself needs; resources and scaling are an operator's choice and live in the config. No postponed
annotations in this file: Ray reads the type of `build`'s parameter to validate what a config gives it.
"""

import logging
from typing import Any

from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import RequestRouterConfig

from deployments import tracing
from deployments.diffusion import Diffusion
from deployments.router import CacheRouter
from deployments.text_encoder import TextEncoder
from deployments.video_encoder import VideoEncoder
from serve_app.settings import Settings, unknown
from serve_app.wiring.router import check_settings
from serve_app.wiring.tiers import require_own_stores

logger = logging.getLogger("ray.serve")

PLACEMENT: Any = "deployments.placement.LeastBusyRouter"
BATCHES_TAKEN = 2
"""What a Diffusion replica takes on: one batch to denoise and one to follow it at once; the rest waits in routers."""


def build(settings: Settings) -> Application:
    """Return the application `encore`; before anything is started.

    Raises NotFound for an unknown model, InvalidRequest for a setting that cannot work on any machine, Unavailable
    for an otlp_endpoint without its environment, ForeignStore for a tier that was written under another secret.
    """
    for line in unknown():
        logger.warning("%s", line)
    if settings.redis_url is None and settings.l3_url is None:
        logger.warning(
            "no storage: asynchronous jobs are refused (503) until ENCORE_REDIS_URL or ENCORE_L3_URL is set on every "
            "node; `encore serve` brings its own"
        )
    check_settings(settings)
    require_own_stores(settings)
    tracing.require(settings.otlp_endpoint)
    args = settings.args()
    video_encoder = _deployment(VideoEncoder, max_ongoing_requests=8, graceful_shutdown_timeout_s=60).bind(args)
    diffusion = _deployment(
        Diffusion,
        max_ongoing_requests=BATCHES_TAKEN * settings.max_batch_size,
        request_router_config=RequestRouterConfig(request_router_class=PLACEMENT),
        graceful_shutdown_timeout_s=settings.drain_seconds + 30,
    )
    text_encoder = _deployment(TextEncoder, max_ongoing_requests=64)
    router = _deployment(serve.ingress()(CacheRouter), name="CacheRouter", max_ongoing_requests=2_000)
    return router.bind(args, text_encoder.bind(args), diffusion.bind(args, video_encoder))


def _deployment(cls: Any, *, name: str | None = None, **options: Any) -> Deployment:
    return serve.deployment(name=name or cls.__name__, **options)(cls)
