"""How Ray runs Encore; the only package that imports Ray."""

from deployments.replica.loopback import keep_replicas_on_loopback

keep_replicas_on_loopback()
