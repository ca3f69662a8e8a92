"""Keys, tiers and flights; see `cache`."""
