"""The rules of invalidations; see `rules`."""
