"""Warm-ups: requests rendered before a client sends them; see `warmup`."""
