"""L2, and what else the cache keeps in Redis; see `redis`."""
