"""HTTP routes over the service; see `api`."""
